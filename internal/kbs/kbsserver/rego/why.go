package rego

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// A tracer notes, for each body of allow, the last expression in it that did not hold.
type tracer struct {
	rules map[uint64]*ruleTrace // by the query in which the body is evaluated
	input ast.Value
	rule  func(ast.Ref) ast.Value // value of a reference that begins with a rule; nil: it has none
}

type ruleTrace struct {
	failed *ast.Expr
	locals map[string]ast.Value // variables of the body when it failed
}

func (t *tracer) Enabled() bool               { return true }
func (t *tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

// maxTraced bounds what is remembered of a policy with very many rules.
const maxTraced = 64

func (t *tracer) TraceEvent(e topdown.Event) {
	switch e.Op {
	case topdown.EnterOp:
		if r, ok := e.Node.(*ast.Rule); ok && !r.Default && len(t.rules) < maxTraced && r.Head.Ref().String() == "allow" {
			t.rules[e.QueryID] = new(ruleTrace)
		}
	case topdown.FailOp:
		r, x := t.rules[e.QueryID], (*ast.Expr)(nil)
		if x, _ = e.Node.(*ast.Expr); r == nil || x == nil || x.Location == nil {
			return
		}
		// Backtracking fails earlier expressions again; the furthest is what the rule stopped at.
		if r.failed == nil || x.Location.Row > r.failed.Location.Row ||
			x.Location.Row == r.failed.Location.Row && x.Location.Col >= r.failed.Location.Col {
			r.failed, r.locals = x, map[string]ast.Value{}
			for v, m := range e.LocalMetadata {
				if value := e.Locals.Get(v); value != nil {
					r.locals[string(m.Name)] = value
				}
			}
		}
	}
}

// why is one line: where each way to an allow ended.
func (t *tracer) why(failed []topdown.Error) string {
	var lines []string
	var traces []*ruleTrace
	for _, r := range t.rules {
		if r.failed != nil {
			traces = append(traces, r)
		}
	}
	slices.SortFunc(traces, func(a, b *ruleTrace) int { return a.failed.Location.Compare(b.failed.Location) })
	for _, r := range traces {
		line := fmt.Sprintf("line %d: %s does not hold%s", r.failed.Location.Row, shorten(text(r.failed), 160), t.values(r))
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		lines = []string{"no rule of the policy says allow"}
	}
	if len(lines) > 3 {
		lines = append(lines[:3], fmt.Sprintf("%d more", len(lines)-3))
	}
	for i, e := range failed {
		if i == 2 {
			break
		}
		lines = append(lines, shorten(e.Error(), 160))
	}
	return strings.Join(lines, "; ")
}

func text(x *ast.Expr) string {
	if len(x.Location.Text) > 0 {
		return string(x.Location.Text)
	}
	return x.String()
}

// values says what there is where an expression speaks of claims, of a variable or of another rule. It looks at the
// expression as it is written, since the compiler's form of it has other names.
func (t *tracer) values(r *ruleTrace) string {
	written, err := ast.ParseExpr(text(r.failed))
	if err != nil {
		return ""
	}
	var out strings.Builder
	said := map[string]bool{}
	visit := func(ref ast.Ref) {
		name := ref.String()
		if said[name] || len(said) == 3 || !ref[1:].IsGround() {
			return
		}
		value, known := t.value(ref, r)
		if !known {
			return
		}
		said[name] = true
		what := "not there"
		if value != nil {
			what = "is " + shorten(value.String(), 100)
		}
		fmt.Fprintf(&out, ", %s %s", shorten(name, 120), what)
	}
	ast.WalkRefs(written, func(ref ast.Ref) bool {
		visit(ref)
		return false
	})
	return out.String()
}

// value gives what a reference stands for, nil if there is nothing; known is false for what needs no saying, such as
// the name of a built-in function.
func (t *tracer) value(ref ast.Ref, r *ruleTrace) (value ast.Value, known bool) {
	head, ok := ref[0].Value.(ast.Var)
	if !ok {
		return nil, false
	}
	root, local := r.locals[string(head)]
	switch {
	case ref.HasPrefix(ast.InputRootRef):
		root = t.input
	case ref.HasPrefix(ast.DefaultRootRef):
		return nil, false // what the guest has asked for is in the log anyway
	case !local:
		value = t.rule(ref)
		return value, value != nil
	}
	if value, err := root.Find(ref[1:]); err == nil {
		return value, true
	}
	return nil, true
}
