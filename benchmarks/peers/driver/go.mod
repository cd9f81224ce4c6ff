module multiraft/benchmarks/driver

go 1.22
