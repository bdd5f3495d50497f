// Package doctor examines what a confidential VM is to be made of: this machine, a firmware, a kernel, an image. It says
// what is in order, what is missing and how to mend it, and in words what risk is left. It is for hosts, and changes nothing.
package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// A State is what was found of one thing.
type State string

const (
	OK      State = "ok"
	Absent  State = "absent"  // not there, and nobody asked for it
	Bad     State = "bad"     // asked for, and missing or wrong
	Unknown State = "unknown" // cannot be told from here
)

// A Finding is one thing that was looked at.
type Finding struct {
	Part  string `json:"part"` // "host", "firmware", "kernel" or "image"
	What  string `json:"what"`
	State State  `json:"state"`
	Found string `json:"found"`         // what is the case
	Fix   string `json:"fix,omitempty"` // what to do about it
}

// A Report is all findings, and the risks that are left if nothing of it is changed.
type Report struct {
	Findings []Finding `json:"findings"`
	Risks    []string  `json:"residual_risks"`
}

func (r *Report) add(part, what string, state State, fix, format string, args ...any) {
	if state == OK {
		fix = ""
	}
	r.Findings = append(r.Findings, Finding{part, what, state, fmt.Sprintf(format, args...), fix})
}

// risk notes a risk, once.
func (r *Report) risk(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(r.Risks, s) {
		r.Risks = append(r.Risks, s)
	}
}

// Bad counts the findings that are.
func (r *Report) Bad() (n int) {
	for _, f := range r.Findings {
		if f.State == Bad {
			n++
		}
	}
	return n
}

// Text is the report for a terminal. Rules of a kernel that hold are counted and not listed.
func (r *Report) Text() string {
	var t strings.Builder
	part, width := "", 0
	for _, f := range r.Findings {
		width = max(width, len(f.What))
	}
	for _, f := range r.Findings {
		if f.Part != part {
			part = f.Part
			fmt.Fprintf(&t, "%s\n", part)
		}
		fmt.Fprintf(&t, "  %-8s%-*s  %s\n", f.State, width, f.What, f.Found)
		if f.Fix != "" {
			fmt.Fprintf(&t, "  %-8s%-*s  → %s\n", "", width, "", f.Fix)
		}
	}
	if len(r.Risks) > 0 {
		t.WriteString("what is left at risk\n")
		for _, risk := range r.Risks {
			fmt.Fprintf(&t, "  - %s\n", risk)
		}
	}
	return t.String()
}

// General notes the risks that no configuration takes away.
func (r *Report) General() {
	r.risk("the host can always refuse service, delay, and see sizes and times of what is fetched")
	r.risk("side channels of the processor, and physical attacks on its memory bus, are not covered by SEV-SNP or TDX evidence")
	r.risk("evidence is as good as the platform's firmware: verifiers must refuse TCB levels that are out of date")
}
