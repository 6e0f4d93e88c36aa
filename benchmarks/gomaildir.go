// One measurement of github.com/emersion/go-maildir, which syncs nothing.
//
//	gomaildir DIR MESSAGES SECONDS WARMUP SIZE IN-FLIGHT
//
// The maildir is DIR/0, and exists. Prints one JSON object: workload.Measurement.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/emersion/go-maildir"
)

const period = 1 << 20

var mix = []int{1, 2, 4, 4, 8, 13, 32, 64} // KiB: workload.MIX

var pattern = make([]byte, period)

func message(number, size int) []byte {
	if size == 0 {
		size = mix[number%len(mix)] * 1024
	}
	var buffer bytes.Buffer
	buffer.Grow(size)
	fmt.Fprintf(&buffer, "Subject: benchmark message %010d\nX-Padding: xxxxxxxxxxxxx\n\n", number)
	for buffer.Len() < size {
		left := size - buffer.Len()
		if left > period {
			left = period
		}
		buffer.Write(pattern[:left])
	}
	return buffer.Bytes()
}

func deliver(path string, data []byte) error {
	delivery, err := maildir.NewDelivery(path)
	if err != nil {
		return err
	}
	if _, err := delivery.Write(data); err != nil {
		return err
	}
	return delivery.Close()
}

func cpu() float64 {
	var used syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &used)
	return float64(used.Utime.Sec+used.Stime.Sec) + float64(used.Utime.Usec+used.Stime.Usec)/1e6
}

type phase struct {
	sync.Mutex
	begun, done, bytes int
	latencies          []float64
	last               float64
}

// run delivers messages first .. first+limit-1, until the time is up.
func run(path string, first, limit int, seconds float64, size, inFlight int) *phase {
	var p phase
	var workers sync.WaitGroup
	messages := make([][]byte, limit)
	for i := range messages {
		messages[i] = message(first+i, size)
	}
	started := time.Now()
	for w := 0; w < inFlight; w++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for {
				p.Lock()
				began := time.Since(started).Seconds()
				mine := p.begun
				if mine >= limit || began >= seconds {
					p.Unlock()
					return
				}
				p.begun++
				p.Unlock()
				if err := deliver(path, messages[mine]); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				now := time.Since(started).Seconds()
				p.Lock()
				p.latencies = append(p.latencies, (now-began)*1e3)
				if now <= seconds || p.done == 0 {
					p.done++
					p.bytes += len(messages[mine])
					p.last = now
				}
				p.Unlock()
			}
		}()
	}
	workers.Wait()
	return &p
}

func main() {
	number := func(i int) int {
		value, err := strconv.Atoi(os.Args[i])
		if err != nil {
			panic(err)
		}
		return value
	}
	path := filepath.Join(os.Args[1], "0")
	seconds, err := strconv.ParseFloat(os.Args[3], 64)
	if err != nil {
		panic(err)
	}
	for i := range pattern {
		pattern[i] = 'a' + byte(i/64%26)
		if i%64 == 63 {
			pattern[i] = '\n'
		}
	}
	warmup := run(path, 0, number(4), 0.3, number(5), number(6))
	used := cpu()
	timed := run(path, warmup.begun, number(2), seconds, number(5), number(6))
	used = cpu() - used
	sort.Float64s(timed.latencies)
	share := func(percent int) float64 { return timed.latencies[(len(timed.latencies)-1)*percent/100] }
	json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"messages": timed.done, "delivered": warmup.begun + timed.begun, "bytes": timed.bytes, "seconds": timed.last,
		"cpu_s":      used,
		"latency_ms": map[string]float64{"p50": share(50), "p90": share(90), "p99": share(99), "max": share(100)},
	})
}
