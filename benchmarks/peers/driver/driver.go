// Package driver is what the peers written in Go share: the line protocol by which the harness speaks to a node, the
// closed loop of clients, and the state machine that they all replicate.
//
// A program is started with one argument, a JSON object (Options). It prints {"event":"ready"} once it serves, and from
// then on answers each line of JSON on its standard input with one line on its standard output. It ends when its input
// does. The same protocol is spoken by multiraft's own benchmark node.
//
// Rules of this package: every operation is waited for; an operation that fails ends the run; the percentiles are those
// of benchmarks/figures.py: the value at position floor(count * share) of the sorted latencies.
package driver

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Options is how a node is started. Addresses are those of all nodes, its own at position Node.
type Options struct {
	Node      int      `json:"node"`
	Addresses []string `json:"addresses"`
	Directory string   `json:"directory"`
	Groups    int      `json:"groups"`
	// Setting chooses among settings of a peer where there is more than one worth measuring.
	Setting string `json:"setting"`
}

// Node is what a peer's program offers. Write and Read return when the operation is acknowledged; they are called by
// many goroutines, each with its own client number.
type Node interface {
	Led() int
	Gather(to int) error
	Write(client int, payload []byte) error
	Read(client int) error
	Counts() (map[string]any, error)
	Close()
}

// ReadOptions returns the options that the program was started with.
func ReadOptions() Options {
	var options Options
	if len(os.Args) != 2 {
		Fail(fmt.Errorf("one argument is needed: the options as JSON"))
	}
	if err := json.Unmarshal([]byte(os.Args[1]), &options); err != nil {
		Fail(err)
	}
	return options
}

// Fail ends the program and says why.
func Fail(err error) {
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}

type request struct {
	Op       string  `json:"op"`
	Level    string  `json:"level"`
	InFlight int     `json:"in_flight"`
	Seconds  float64 `json:"seconds"`
	Payload  int     `json:"payload"`
	To       int     `json:"to"`
}

// Serve says that the node is ready and obeys its standard input until that ends.
func Serve(node Node) {
	out := json.NewEncoder(os.Stdout)
	say := func(answer any) {
		if err := out.Encode(answer); err != nil {
			Fail(err)
		}
	}
	say(map[string]any{"event": "ready"})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var wanted request
		if err := json.Unmarshal(lines.Bytes(), &wanted); err != nil {
			Fail(err)
		}
		switch wanted.Op {
		case "led":
			say(map[string]any{"led": node.Led()})
		case "gather":
			if err := node.Gather(wanted.To); err != nil {
				Fail(err)
			}
			say(map[string]any{})
		case "load":
			say(Load(node, wanted.Level, wanted.InFlight, wanted.Payload, wanted.Seconds))
		case "counts":
			counts, err := node.Counts()
			if err != nil {
				Fail(err)
			}
			say(counts)
		default:
			Fail(fmt.Errorf("unknown operation %q", wanted.Op))
		}
	}
	node.Close()
}

// Keys is how many different keys the clients write.
const Keys = 4096

// Payload returns a command: eight digits of the client's key, and padding.
func Payload(client, size int) []byte {
	payload := make([]byte, size)
	copy(payload, fmt.Sprintf("%08d", client%Keys))
	for i := 8; i < size; i++ {
		payload[i] = 'x'
	}
	return payload
}

// Load keeps inFlight operations under way for so many seconds, and returns their count and latencies.
func Load(node Node, level string, inFlight, payloadBytes int, seconds float64) map[string]any {
	each := make([][]float64, inFlight)
	var clients sync.WaitGroup
	used := cpuSeconds()
	began := time.Now()
	end := began.Add(time.Duration(seconds * float64(time.Second)))
	for client := 0; client < inFlight; client++ {
		clients.Add(1)
		go func() {
			defer clients.Done()
			payload := Payload(client, payloadBytes)
			var latencies []float64
			for {
				before := time.Now()
				if before.After(end) {
					break
				}
				var err error
				if level == "reads" {
					err = node.Read(client)
				} else {
					err = node.Write(client, payload)
				}
				if err != nil {
					Fail(fmt.Errorf("%s by client %d: %w", level, client, err))
				}
				latencies = append(latencies, time.Since(before).Seconds())
			}
			each[client] = latencies
		}()
	}
	clients.Wait()
	took := time.Since(began).Seconds()
	used = cpuSeconds() - used
	all := slices.Concat(each...)
	slices.Sort(all)
	return map[string]any{
		"cpu_s": used, "writes": len(all), "seconds": took, "writes_per_s": float64(len(all)) / took,
		"p50_ms": Percentile(all, 0.5) * 1e3, "p99_ms": Percentile(all, 0.99) * 1e3,
		"p999_ms": Percentile(all, 0.999) * 1e3,
	}
}

// cpuSeconds returns the CPU time of this process so far, user and system.
func cpuSeconds() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		Fail(err)
	}
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}

// Percentile returns the value below which the given share of the sorted values lies; 0 of none.
func Percentile(sorted []float64, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(float64(len(sorted))*share), len(sorted)-1)]
}

// Machine is the state machine that every peer replicates: the last command of each key, and how many there were.
type Machine struct {
	lock  sync.Mutex
	kept  map[string][]byte
	count uint64
}

// NewMachine returns an empty machine.
func NewMachine() *Machine { return &Machine{kept: map[string][]byte{}} }

// Apply applies commands in order and returns the count after the last of them.
func (m *Machine) Apply(commands ...[]byte) uint64 {
	m.lock.Lock()
	defer m.lock.Unlock()
	for _, command := range commands {
		m.kept[string(command[:8])] = command
	}
	m.count += uint64(len(commands))
	return m.count
}

// Get returns the last command of a key.
func (m *Machine) Get(key string) []byte {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.kept[key]
}

// Count returns how many commands were applied.
func (m *Machine) Count() uint64 {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.count
}

// Image returns the machine as bytes; Restore takes them back.
func (m *Machine) Image() []byte {
	m.lock.Lock()
	defer m.lock.Unlock()
	image := binary.BigEndian.AppendUint64(nil, m.count)
	for _, command := range m.kept {
		image = binary.BigEndian.AppendUint32(image, uint32(len(command)))
		image = append(image, command...)
	}
	return image
}

// Restore makes the machine what it was when `image` was taken.
func (m *Machine) Restore(image []byte) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.kept = map[string][]byte{}
	m.count = binary.BigEndian.Uint64(image)
	for rest := image[8:]; len(rest) > 0; {
		size := int(binary.BigEndian.Uint32(rest))
		command := rest[4 : 4+size]
		m.kept[string(command[:8])] = command
		rest = rest[4+size:]
	}
	return nil
}
