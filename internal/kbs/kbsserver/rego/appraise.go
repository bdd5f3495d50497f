package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/types"
)

// vectorNames are the claims of a trustworthiness vector (AR4SI, draft-ietf-rats-ar4si).
var vectorNames = []string{"instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque", "storage-opaque", "sourced-data"}

// An Attestation is a policy of Trustee's attestation service, which appraises a guest by its claims and by reference
// values. It is compiled, and may be asked by many goroutines at once.
type Attestation struct {
	Policy
	whole bool // one rule trust_claims has the vector; older policies have a rule for each claim
}

// referenceValue is the function by which policies ask for a reference value; in older ones it is in data.reference.
var referenceValue = &rego.Function{Name: "query_reference_value", Decl: types.NewFunction(types.Args(types.S), types.A)}

// CompileAttestation reads a policy: a module `package policy` with a rule trust_claims, an object, or with rules named after
// its members (executables, hardware, configuration, file_system …), each a number.
func CompileAttestation(src []byte) (*Attestation, error) {
	m, caps, err := module(src)
	if err != nil {
		return nil, fmt.Errorf("attestation %w", err)
	}
	a := &Attestation{whole: hasRule(m, "trust_claims")}
	if !a.whole && !slices.ContainsFunc(vectorNames, func(n string) bool { return hasRule(m, ruleName(n)) }) {
		return nil, errors.New("attestation policy: neither a rule trust_claims nor one of a claim, as executables")
	}
	caps.Builtins = append(caps.Builtins, &ast.Builtin{Name: referenceValue.Name, Decl: referenceValue.Decl})
	c := ast.NewCompiler().WithCapabilities(caps)
	if c.Compile(map[string]*ast.Module{"policy": m}); c.Failed() {
		return nil, fmt.Errorf("attestation policy: %w", oneLine(c.Errors))
	}
	a.Policy = Policy{compiler: c, timeout: Timeout}
	return a, nil
}

func ruleName(claim string) string { return strings.ReplaceAll(claim, "-", "_") }

func hasRule(m *ast.Module, name string) bool {
	return slices.ContainsFunc(m.Rules, func(r *ast.Rule) bool {
		ref := r.Head.Ref()
		return len(ref) == 1 && ref[0].Equal(ast.VarTerm(name))
	})
}

// Appraise gives the trustworthiness vector of a guest: claims, by the names of AR4SI, and numbers of -128 to 127. A claim that
// has no value is left out. The error is for a policy that could not be asked to its end, or gives what is no vector.
func (a *Attestation) Appraise(ctx context.Context, claims map[string]any, references map[string]json.RawMessage) (map[string]int, error) {
	input, err := ast.InterfaceToValue(claims)
	if err != nil {
		return nil, fmt.Errorf("attestation policy: claims: %w", err)
	}
	known := map[string]any{}
	values := map[string]*ast.Term{}
	for name, raw := range references {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("reference value %.80q: %w", name, err)
		}
		value, err := ast.InterfaceToValue(v)
		if err != nil {
			return nil, fmt.Errorf("reference value %.80q: %w", name, err)
		}
		known[name], values[name] = v, ast.NewTerm(value)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	store := inmem.NewFromObject(map[string]any{"reference": known})
	ask := func(rule string) (any, error) {
		// A value that nobody has set is undefined, so that what compares with it fails.
		lookup := rego.Function1(referenceValue, func(_ rego.BuiltinContext, name *ast.Term) (*ast.Term, error) {
			s, ok := name.Value.(ast.String)
			if !ok {
				return nil, errors.New("query_reference_value: want a string")
			}
			return values[string(s)], nil
		})
		q, err := rego.New(rego.Compiler(a.compiler), rego.Store(store), lookup, rego.Query("data.policy."+rule)).PrepareForEval(ctx)
		if err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
		v, _, err := a.eval(ctx, q, rego.EvalParsedInput(input))
		return v, err
	}
	vector := map[string]int{}
	if a.whole {
		v, err := ask("trust_claims")
		if err != nil {
			return nil, fmt.Errorf("attestation %w", err)
		}
		object, ok := v.(map[string]any)
		if !ok {
			return nil, errors.New("attestation policy: trust_claims is not an object")
		}
		for name, v := range object {
			if err := put(vector, name, v); err != nil {
				return nil, err
			}
		}
		return vector, nil
	}
	for _, name := range vectorNames {
		v, err := ask(ruleName(name))
		if err != nil {
			return nil, fmt.Errorf("attestation %w", err)
		}
		if err := put(vector, name, v); v != nil && err != nil {
			return nil, err
		}
	}
	return vector, nil
}

func put(vector map[string]int, name string, v any) error {
	n, ok := v.(json.Number)
	i, err := n.Int64()
	if !ok || err != nil || i < -128 || i > 127 || !slices.Contains(vectorNames, name) {
		return fmt.Errorf("attestation policy: %.40q is %.40q, want one of %q with a number of -128 to 127", name, fmt.Sprint(v), vectorNames)
	}
	vector[name] = int(i)
	return nil
}
