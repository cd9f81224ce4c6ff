// A client of etcd, in a process of its own: puts and linearizable gets over gRPC, in a closed loop.
//
// It speaks the line protocol of the other peers, for three etcd servers that the harness has started. All of its
// connections go to the leader, which saves etcd a hop; clients share them, about a hundred to a connection at most, which was
// the fastest of 1, 10 and 100 connections.
//
// Every server must end up with the same revision and the same hash over all keys at it.
package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"multiraft/benchmarks/driver"
)

const (
	timeout            = 10 * time.Second
	defaultConnections = 10
)

type node struct {
	options driver.Options
	all     []*clientv3.Client
	leader  []*clientv3.Client
	keys    []string
}

func dial(address string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{address}, DialTimeout: timeout, Logger: zap.NewNop(),
	})
}

func (n *node) open() error {
	for _, address := range n.options.Addresses {
		one, err := dial(address)
		if err != nil {
			return err
		}
		n.all = append(n.all, one)
	}
	connections := defaultConnections
	if n.options.Setting != "" {
		var err error
		if connections, err = strconv.Atoi(n.options.Setting); err != nil {
			return err
		}
	}
	for number := 0; number < connections; number++ {
		one, err := dial(n.options.Addresses[n.options.Node])
		if err != nil {
			return err
		}
		n.leader = append(n.leader, one)
	}
	for number := 0; number < driver.Keys; number++ {
		n.keys = append(n.keys, fmt.Sprintf("%08d", number))
	}
	return nil
}

func (n *node) status(number int) (*clientv3.StatusResponse, error) {
	limited, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return n.all[number].Status(limited, n.options.Addresses[number])
}

// Led is 1 when the server whose connections the load uses is the leader.
func (n *node) Led() int {
	found, err := n.status(n.options.Node)
	if err == nil && found.Leader != 0 && found.Leader == found.Header.MemberId {
		return 1
	}
	return 0
}

// Gather hands leadership to server `to`, whoever has it. A hand-over that fails is tried again by the harness.
func (n *node) Gather(to int) error {
	target, err := n.status(to)
	if err != nil {
		return nil
	}
	for number := range n.all {
		found, err := n.status(number)
		if err != nil || found.Leader != found.Header.MemberId {
			continue
		}
		limited, cancel := context.WithTimeout(context.Background(), timeout)
		_, _ = n.all[number].MoveLeader(limited, target.Header.MemberId)
		cancel()
	}
	return nil
}

func (n *node) Write(client int, payload []byte) error {
	_, err := n.leader[client%len(n.leader)].Put(context.Background(), n.keys[client%len(n.keys)], string(payload))
	return err
}

func (n *node) Read(client int) error {
	_, err := n.leader[client%len(n.leader)].Get(context.Background(), n.keys[client%len(n.keys)])
	return err
}

// Counts returns what each server has applied: its revision, and the hash of all keys at the lowest of the revisions.
func (n *node) Counts() (map[string]any, error) {
	limited, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var applied []int64
	var hashes []uint32
	for number := range n.all {
		found, err := n.status(number)
		if err != nil {
			return nil, err
		}
		applied = append(applied, found.Header.Revision)
	}
	for number := range n.all {
		found, err := n.all[number].HashKV(limited, n.options.Addresses[number], min(applied[0], applied[1], applied[2]))
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, found.Hash)
	}
	return map[string]any{"applied": applied, "hashes": hashes}, nil
}

func (n *node) Close() {
	for _, one := range append(n.all, n.leader...) {
		_ = one.Close()
	}
}

func main() {
	n := &node{options: driver.ReadOptions()}
	if err := n.open(); err != nil {
		driver.Fail(err)
	}
	driver.Serve(n)
}
