// A node of hashicorp/raft with raft-boltdb: one Raft, one bolt file and one TCP transport per group, as that library
// wants it, in one process per node.
//
// Settings: pre-vote and pipelining as they come; BatchApplyCh, a BatchingFSM and MaxAppendEntries 1024, which are its
// means of batching; a log cache of 512 entries before bolt, as its users have it. Bolt syncs each transaction, twice:
// its pages, then its meta page. Snapshots as they come: every 8,192 entries, looked for every two minutes.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"

	"multiraft/benchmarks/driver"
)

const (
	maxAppendEntries = 1024
	logCache         = 512
	timeout          = 10 * time.Second
	syncsPerWrite    = 2
)

// fsm hands what is committed to the machine, a batch at a time.
type fsm struct{ machine *driver.Machine }

func (f *fsm) Apply(log *raft.Log) interface{} { return f.machine.Apply(log.Data) }

func (f *fsm) ApplyBatch(logs []*raft.Log) []interface{} {
	answers := make([]interface{}, len(logs))
	for i, log := range logs {
		if log.Type == raft.LogCommand {
			answers[i] = f.machine.Apply(log.Data)
		}
	}
	return answers
}

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return snapshot(f.machine.Image()), nil }

func (f *fsm) Restore(from io.ReadCloser) error {
	image, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	return f.machine.Restore(image)
}

type snapshot []byte

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		return err
	}
	return sink.Close()
}

func (s snapshot) Release() {}

// counted is bolt, with every transaction that it syncs counted.
type counted struct {
	*boltdb.BoltStore
	transactions *atomic.Int64
}

func (c counted) StoreLog(log *raft.Log) error {
	c.transactions.Add(1)
	return c.BoltStore.StoreLog(log)
}

func (c counted) StoreLogs(logs []*raft.Log) error {
	c.transactions.Add(1)
	return c.BoltStore.StoreLogs(logs)
}

func (c counted) DeleteRange(low, high uint64) error {
	c.transactions.Add(1)
	return c.BoltStore.DeleteRange(low, high)
}

func (c counted) Set(key, value []byte) error {
	c.transactions.Add(1)
	return c.BoltStore.Set(key, value)
}

func (c counted) SetUint64(key []byte, value uint64) error {
	c.transactions.Add(1)
	return c.BoltStore.SetUint64(key, value)
}

type node struct {
	options      driver.Options
	rafts        []*raft.Raft
	machines     []*driver.Machine
	transactions atomic.Int64
}

func serverID(number int) raft.ServerID { return raft.ServerID(strconv.Itoa(number)) }

// address returns where a group of a node listens: the node's port and the group's number after it.
func address(of string, group int) (raft.ServerAddress, error) {
	host, text, err := net.SplitHostPort(of)
	if err != nil {
		return "", err
	}
	port, err := strconv.Atoi(text)
	return raft.ServerAddress(net.JoinHostPort(host, strconv.Itoa(port+group))), err
}

func (n *node) open(group int) error {
	directory := filepath.Join(n.options.Directory, strconv.Itoa(group))
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	bolt, err := boltdb.New(boltdb.Options{Path: filepath.Join(directory, "raft.db")})
	if err != nil {
		return err
	}
	store := counted{bolt, &n.transactions}
	cache, err := raft.NewLogCache(logCache, store)
	if err != nil {
		return err
	}
	snapshots, err := raft.NewFileSnapshotStore(directory, 1, io.Discard)
	if err != nil {
		return err
	}
	var servers []raft.Server
	for number, of := range n.options.Addresses {
		at, err := address(of, group)
		if err != nil {
			return err
		}
		servers = append(servers, raft.Server{ID: serverID(number), Address: at})
	}
	own := string(servers[n.options.Node].Address)
	transport, err := raft.NewTCPTransport(own, nil, 3, timeout, io.Discard)
	if err != nil {
		return err
	}
	config := raft.DefaultConfig()
	config.LocalID = serverID(n.options.Node)
	config.MaxAppendEntries = maxAppendEntries
	config.BatchApplyCh = true
	config.Logger = hclog.NewNullLogger()
	members := raft.Configuration{Servers: servers}
	if err := raft.BootstrapCluster(config, cache, store, snapshots, transport, members); err != nil {
		return err
	}
	machine := driver.NewMachine()
	started, err := raft.NewRaft(config, &fsm{machine}, cache, store, snapshots, transport)
	n.rafts, n.machines = append(n.rafts, started), append(n.machines, machine)
	return err
}

func (n *node) Led() int {
	led := 0
	for _, each := range n.rafts {
		if each.State() == raft.Leader {
			led++
		}
	}
	return led
}

// Gather hands every group that is led here to another node. A hand-over that fails is tried again by the harness.
func (n *node) Gather(to int) error {
	for group, each := range n.rafts {
		if each.State() != raft.Leader {
			continue
		}
		at, err := address(n.options.Addresses[to], group)
		if err != nil {
			return err
		}
		_ = each.LeadershipTransferToServer(serverID(to), at).Error()
	}
	return nil
}

func (n *node) Write(client int, payload []byte) error {
	return n.rafts[client%len(n.rafts)].Apply(payload, timeout).Error()
}

// Read asks a quorum whether this node still leads, and then the machine.
func (n *node) Read(client int) error {
	group := client % len(n.rafts)
	if err := n.rafts[group].VerifyLeader().Error(); err != nil {
		return err
	}
	n.machines[group].Get(fmt.Sprintf("%08d", client%driver.Keys))
	return nil
}

func (n *node) Counts() (map[string]any, error) {
	var applied uint64
	for _, machine := range n.machines {
		applied += machine.Count()
	}
	return map[string]any{"applied": applied, "syncs": syncsPerWrite * n.transactions.Load()}, nil
}

func (n *node) Close() {}

func main() {
	n := &node{options: driver.ReadOptions()}
	for group := 0; group < n.options.Groups; group++ {
		if err := n.open(group); err != nil {
			driver.Fail(err)
		}
	}
	driver.Serve(n)
}
