// Package rego asks policies in Rego, as Trustee does: may a guest have a resource, and how good is its evidence.
//
// A resource policy is a module `package policy` with a rule `allow`. The claims of the guest's token are `input`; what it asks
// for is `data.plugin`, `data["resource-path"]` (the segments, a list) and `data.query`. No policy reaches the network,
// the clock or a source of chance: what it decides follows from these and from nothing else.
package rego

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// MaxSource bounds the source of a policy, in bytes.
const MaxSource = 1 << 20

// Timeout bounds one decision, its explanation included.
const Timeout = time.Second

const query = "data.policy.allow"

// A Policy is compiled and may be asked by many goroutines at once.
type Policy struct {
	compiler *ast.Compiler
	timeout  time.Duration
}

// Compile reads a policy, as Rego v1 or, where it is not that, as v0: policies for Trustee up to v0.10 are often the
// latter. A rule that could never be evaluated here, such as one that calls http.send, is an error now and not later.
func Compile(src []byte) (*Policy, error) {
	m, caps, err := module(src)
	if err != nil {
		return nil, err
	}
	if err := hasAllow(m); err != nil {
		return nil, err
	}
	c := ast.NewCompiler().WithCapabilities(caps)
	if c.Compile(map[string]*ast.Module{"policy": m}); c.Failed() {
		return nil, fmt.Errorf("policy: %w", oneLine(c.Errors))
	}
	return &Policy{compiler: c, timeout: Timeout}, nil
}

// module reads a module `package policy`, and says what it may call.
func module(src []byte) (*ast.Module, *ast.Capabilities, error) {
	if len(src) > MaxSource || !utf8.Valid(src) {
		return nil, nil, fmt.Errorf("policy: want UTF-8 of at most %d bytes", MaxSource)
	}
	m, caps, err := parse(string(src), ast.RegoV1)
	if err != nil {
		var old error
		if m, caps, old = parse(string(src), ast.RegoV0); old != nil {
			return nil, nil, fmt.Errorf("policy: %w", oneLine(err))
		}
	}
	if got := m.Package.Path.String(); got != "data.policy" {
		return nil, nil, fmt.Errorf("policy: package is %s, want policy", strings.TrimPrefix(got, "data."))
	}
	return m, caps, nil
}

func parse(src string, v ast.RegoVersion) (*ast.Module, *ast.Capabilities, error) {
	caps := capabilities(v)
	m, err := ast.ParseModuleWithOpts("policy", src, ast.ParserOptions{RegoVersion: v, Capabilities: caps})
	if err == nil && m == nil {
		err = errors.New("empty")
	}
	return m, caps, err
}

// capabilities are those of the library without what reaches beyond the policy and its documents.
func capabilities(v ast.RegoVersion) *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(v))
	var pure []*ast.Builtin
	for _, b := range caps.Builtins {
		switch {
		case b.Nondeterministic: // http.send, net.lookup_ip_addr, opa.runtime, rand.intn, time.now_ns, uuid.rfc4122 …
		case b.Name == "json.match_schema", b.Name == "json.verify_schema": // a schema may refer to a URL
		case b.Name == "io.jwt.decode_verify": // by the clock
		default:
			pure = append(pure, b)
		}
	}
	caps.Builtins = pure
	caps.AllowNet = []string{}
	return caps
}

func hasAllow(m *ast.Module) error {
	for _, r := range m.Rules {
		if ref := r.Head.Ref(); len(ref) > 0 && ref[0].Equal(ast.VarTerm("allow")) {
			if len(ref) > 1 || len(r.Head.Args) > 0 || r.Head.Key != nil {
				return fmt.Errorf("policy: line %d: allow is not a plain rule", r.Location.Row)
			}
			return nil
		}
	}
	return errors.New("policy: no rule allow")
}

// oneLine makes the library's list of errors fit into a log.
func oneLine(err error) error {
	list, ok := errors.AsType[ast.Errors](err)
	if !ok {
		return err
	}
	var lines []string
	for i, e := range list {
		if i == 5 {
			lines = append(lines, fmt.Sprintf("%d more", len(list)-i))
			break
		}
		line := e.Message
		if e.Location != nil {
			line = fmt.Sprintf("line %d: %s", e.Location.Row, line)
		}
		lines = append(lines, shorten(line, 300))
	}
	return errors.New(strings.Join(lines, "; "))
}

// Resource decides whether the guest with these claims may have the resource at path, which is REPO/TYPE/TAG. For a
// denial why says, in one line, what did not hold, and with which value. The error is for a policy that could not be
// asked to its end; the resource is then denied, too.
func (p *Policy) Resource(ctx context.Context, path string, claims map[string]any) (allow bool, why string, err error) {
	return p.ask(ctx, "resource", path, claims)
}

func (p *Policy) ask(ctx context.Context, plugin, path string, claims map[string]any) (bool, string, error) {
	var segments []any
	for s := range strings.SplitSeq(path, "/") {
		segments = append(segments, s)
	}
	if claims == nil {
		claims = map[string]any{}
	}
	input, err := ast.InterfaceToValue(claims)
	if err != nil {
		return false, "", fmt.Errorf("policy: claims: %w", err)
	}
	data := map[string]any{"plugin": plugin, "resource-path": segments, "query": map[string]any{}}
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	store := inmem.NewFromObject(data)
	prepare := func(query string) (rego.PreparedEvalQuery, error) {
		return rego.New(rego.Compiler(p.compiler), rego.Store(store), rego.Query(query)).PrepareForEval(ctx)
	}
	q, err := prepare(query)
	if err != nil {
		return false, "", fmt.Errorf("policy: %w", err)
	}
	value, _, err := p.eval(ctx, q, rego.EvalParsedInput(input))
	if err != nil {
		return false, "", err
	}
	switch v := value.(type) {
	case bool:
		if v {
			return true, "", nil
		}
	case nil:
	default:
		return false, fmt.Sprintf("allow is %s, want true or false", shorten(fmt.Sprint(v), 100)), nil
	}
	t := tracer{rules: map[uint64]*ruleTrace{}, input: input, rule: func(ref ast.Ref) ast.Value {
		q, err := prepare("data.policy." + ref.String())
		if err != nil {
			return nil
		}
		value, _, err := p.eval(ctx, q, rego.EvalParsedInput(input))
		if err != nil || value == nil {
			return nil
		}
		v, err := ast.InterfaceToValue(value)
		if err != nil {
			return nil
		}
		return v
	}}
	_, failed, err := p.eval(ctx, q, rego.EvalParsedInput(input), rego.EvalQueryTracer(&t), rego.EvalRuleIndexing(false))
	if err != nil {
		return false, "", err
	}
	return false, t.why(failed), nil
}

// eval gives the value of allow, nil if it has none, and the errors of built-in functions, which count as undefined.
func (p *Policy) eval(ctx context.Context, q rego.PreparedEvalQuery, o ...rego.EvalOption) (any, []topdown.Error, error) {
	var failed []topdown.Error
	results, err := q.Eval(ctx, append(o, rego.EvalBuiltinErrorList(&failed))...)
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, nil, fmt.Errorf("policy: no decision within %v", p.timeout)
	case err != nil:
		return nil, nil, fmt.Errorf("policy: %s", shorten(err.Error(), 300))
	case len(results) == 0:
		return nil, failed, nil
	case len(results) > 1 || len(results[0].Expressions) != 1:
		return nil, nil, errors.New("policy: allow has several values")
	}
	return results[0].Expressions[0].Value, failed, nil
}

// shorten makes text one line of at most n bytes or so.
func shorten(text string, n int) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "") + "…"
	}
	return text
}
