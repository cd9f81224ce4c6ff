// A node of dragonboat v4: one NodeHost, which keeps all shards in its default store (Pebble), synced.
//
// Settings: those that it comes with, concurrent state machines (which take committed entries in batches), sessions
// switched off (NoOP), check-quorum and pre-vote on, snapshots every 100,000 entries as its examples have it for busy shards.
// Its syncs are not counted here: a file system that counted them would hide from Pebble how to sync data alone. The
// harness counts what reaches the disk.
package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	"github.com/lni/dragonboat/v4/statemachine"

	"multiraft/benchmarks/driver"
)

const (
	roundTripMs            = 100 // a tick: elections after ten of them, heartbeats every one
	snapshotEntries        = 100_000
	compactionTrail        = 10_000
	timeout                = 10 * time.Second
	firstShard      uint64 = 1
)

type machine struct{ *driver.Machine }

func (m machine) Update(entries []statemachine.Entry) ([]statemachine.Entry, error) {
	for i := range entries {
		entries[i].Result = statemachine.Result{Value: m.Apply(entries[i].Cmd)}
	}
	return entries, nil
}

func (m machine) Lookup(key interface{}) (interface{}, error) { return m.Get(key.(string)), nil }

func (m machine) PrepareSnapshot() (interface{}, error) { return m.Image(), nil }

func (m machine) SaveSnapshot(
	image interface{}, to io.Writer, _ statemachine.ISnapshotFileCollection, _ <-chan struct{},
) error {
	_, err := to.Write(image.([]byte))
	return err
}

func (m machine) RecoverFromSnapshot(from io.Reader, _ []statemachine.SnapshotFile, _ <-chan struct{}) error {
	image, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	return m.Restore(image)
}

func (m machine) Close() error { return nil }

type node struct {
	options  driver.Options
	host     *dragonboat.NodeHost
	sessions []*client.Session
	machines []*driver.Machine
}

func replica(number int) uint64 { return uint64(number) + 1 }

func (n *node) open() error {
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "logdb", "config", "settings"} {
		logger.GetLogger(name).SetLevel(logger.CRITICAL)
	}
	host, err := dragonboat.NewNodeHost(config.NodeHostConfig{
		NodeHostDir:    n.options.Directory,
		WALDir:         n.options.Directory,
		RTTMillisecond: roundTripMs,
		RaftAddress:    n.options.Addresses[n.options.Node],
	})
	if err != nil {
		return err
	}
	n.host = host
	members := map[uint64]dragonboat.Target{}
	for number, address := range n.options.Addresses {
		members[replica(number)] = address
	}
	for number := 0; number < n.options.Groups; number++ {
		shard := firstShard + uint64(number)
		kept := driver.NewMachine()
		create := func(uint64, uint64) statemachine.IConcurrentStateMachine { return machine{kept} }
		err := host.StartConcurrentReplica(members, false, create, config.Config{
			ReplicaID:          replica(n.options.Node),
			ShardID:            shard,
			ElectionRTT:        10,
			HeartbeatRTT:       1,
			CheckQuorum:        true,
			PreVote:            true,
			SnapshotEntries:    snapshotEntries,
			CompactionOverhead: compactionTrail,
		})
		if err != nil {
			return err
		}
		n.machines = append(n.machines, kept)
		n.sessions = append(n.sessions, host.GetNoOPSession(shard))
	}
	return nil
}

func (n *node) Led() int {
	led := 0
	for number := range n.sessions {
		leader, _, valid, err := n.host.GetLeaderID(firstShard + uint64(number))
		if err == nil && valid && leader == replica(n.options.Node) {
			led++
		}
	}
	return led
}

// Gather hands every group that is led here to another node. A hand-over that fails is tried again by the harness.
func (n *node) Gather(to int) error {
	for number := range n.sessions {
		shard := firstShard + uint64(number)
		leader, _, valid, err := n.host.GetLeaderID(shard)
		if err == nil && valid && leader == replica(n.options.Node) {
			_ = n.host.RequestLeaderTransfer(shard, replica(to))
		}
	}
	return nil
}

func (n *node) Write(client int, payload []byte) error {
	state, err := n.host.Propose(n.sessions[client%len(n.sessions)], payload, timeout)
	if err != nil {
		return err
	}
	result := <-state.ResultC()
	state.Release()
	if !result.Completed() {
		return fmt.Errorf("not completed: %+v", result)
	}
	return nil
}

func (n *node) Read(client int) error {
	limited, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	shard := firstShard + uint64(client%len(n.sessions))
	_, err := n.host.SyncRead(limited, shard, fmt.Sprintf("%08d", client%driver.Keys))
	return err
}

func (n *node) Counts() (map[string]any, error) {
	var applied uint64
	for _, each := range n.machines {
		applied += each.Count()
	}
	return map[string]any{"applied": applied}, nil
}

func (n *node) Close() {}

func main() {
	n := &node{options: driver.ReadOptions()}
	if err := n.open(); err != nil {
		driver.Fail(err)
	}
	driver.Serve(n)
}
