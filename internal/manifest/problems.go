package manifest

import (
	"fmt"
	"strings"
)

// maxProblems bounds a report: a manifest of nothing but unknown keys has one page of them, not a megabyte.
const maxProblems = 50

// Problem is one thing that is wrong, and where.
type Problem struct {
	Path string // datasets[0].uri; empty: the whole
	Text string
}

func (p Problem) String() string {
	if p.Path == "" {
		return "manifest: " + p.Text
	}
	return p.Path + ": " + p.Text
}

// Problems is all that is wrong with a manifest, in its order.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

func (r *reader) problem(path, format string, args ...any) {
	switch n := len(r.problems); {
	case n < maxProblems:
		r.problems = append(r.problems, Problem{path, fmt.Sprintf(format, args...)})
	case n == maxProblems:
		r.problems = append(r.problems, Problem{"", "has more problems than these"})
	}
}
