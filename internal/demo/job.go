package demo

import (
	"encoding/json"
	"net"
)

// A Job is what a demo manifest says; the rest is the same in each.
type Job struct {
	Algorithm, Dataset string // references by digest
	Kind, Runtime      string // "" for none said; the runtime is not encrypted
	Args               []string
	Deadline           string // of the workload, "" for none of its own
	MemoryBytes, PIDs  int64
	InputBytes         int64
	Plain              bool // the images are not encrypted
}

// The keys of the demo at the broker.
const (
	AlgorithmKey = "default/key/algo-key"
	DatasetKey   = "default/key/dataset-key"
)

// Manifest writes a manifest in Ampoule's own spelling, with the world's recipient and broker.
func (w *World) Manifest(j Job) []byte {
	resource := func(uri, key string) map[string]any {
		r := map[string]any{"uri": uri}
		if !j.Plain {
			r["encrypted"], r["kbs_resource_path"] = true, key
		}
		return r
	}
	m := map[string]any{
		"version":        1,
		"computation_id": "demo",
		"algorithm":      resource(j.Algorithm, AlgorithmKey),
		"results":        map[string]any{"recipients": []string{w.Identity.Recipient().String()}},
		"kbs":            []any{map[string]any{"url": w.Broker}},
	}
	if w.CA != nil {
		_, port, _ := net.SplitHostPort(w.Registry)
		m["kbs"] = []any{map[string]any{"url": w.Broker, "ca": string(w.CA)}}
		m["registries"] = []any{map[string]any{"host": net.JoinHostPort(guestHost, port), "ca": string(w.CA)}}
	}
	if j.Dataset != "" {
		m["datasets"] = []any{resource(j.Dataset, DatasetKey)}
	}
	if j.Kind != "" {
		m["workload"] = j.Kind
	}
	if j.Runtime != "" {
		m["runtime"] = map[string]any{"uri": j.Runtime}
	}
	if j.Args != nil {
		m["args"] = j.Args
	}
	limits := map[string]any{}
	if j.Deadline != "" {
		limits["deadline"] = j.Deadline
	}
	if j.MemoryBytes != 0 {
		limits["memory_bytes"] = j.MemoryBytes
	}
	if j.InputBytes != 0 {
		limits["input_bytes"] = j.InputBytes
	}
	if j.PIDs != 0 {
		limits["pids"] = j.PIDs
	}
	if len(limits) > 0 {
		m["resources"] = limits
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		panic(err) // maps of strings and numbers
	}
	return append(b, '\n')
}
