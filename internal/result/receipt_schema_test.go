package result

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const receiptSchema = "../../docs/receipt.schema.json"

// receiptSchemas are of the file, and of the statement in it.
func receiptSchemas(t *testing.T) (file, statement *jsonschema.Schema) {
	t.Helper()
	c := jsonschema.NewCompiler()
	for url, path := range map[string]string{PredicateType: receiptSchema, "https://github.com/ampoule-vm/ampoule/docs/events.schema.json": eventSchema} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err == nil {
			err = c.AddResource(url, doc)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	compile := func(url string) *jsonschema.Schema {
		s, err := c.Compile(url)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return compile(PredicateType), compile(PredicateType + "#/$defs/statement")
}

func valid(t *testing.T, s *jsonschema.Schema, b []byte) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(v)
}

// TestReceiptsSuitTheirSchema: those of the vectors do, and what the reader refuses the schema refuses as well.
func TestReceiptsSuitTheirSchema(t *testing.T) {
	file, inner := receiptSchemas(t)
	receipts, err := filepath.Glob("../../docs/receipts/vectors/*/receipt*.json")
	if err != nil || len(receipts) < 4 {
		t.Fatalf("%d vectors, %v", len(receipts), err)
	}
	for _, path := range receipts {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := ParseReceipt(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := valid(t, file, b); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if err := valid(t, inner, r.Payload); err != nil {
			t.Errorf("%s: statement: %v", path, err)
		}
	}
	good := statement(t)
	if err := valid(t, inner, good); err != nil {
		t.Error(err)
	}
	for name, c := range map[string][2]string{
		"another type":      {"Statement/v1", "Statement/v2"},
		"a digest too long": {`"sha256":"44`, `"sha256":"4444`},
		"an exit of 256":    {`"exit":7`, `"exit":256`},
		"a member more":     {`"sealed"`, `"more":1,"sealed"`},
		"a new reason":      {`"reason":"workload"`, `"reason":"fine"`},
		"a binding":         {`"binding":"launch"`, `"binding":"maybe"`},
		"a time":            {`"completed":"2026`, `"completed":"26`},
		"a file's digest":   {`"config_digest"`, `"content_digest"`},
		"a negative number": {`"cpu_us":2500`, `"cpu_us":-1`},
		"a step's state":    {`"state":"start"`, `"state":"begun"`},
	} {
		b := bytes.Replace(good, []byte(c[0]), []byte(c[1]), 1)
		if bytes.Equal(b, good) {
			t.Fatalf("%s: nothing was replaced", name)
		}
		schema := valid(t, inner, b)
		reader := decode(b, &Statement{})
		if reader == nil {
			var s Statement
			_ = decode(b, &s)
			reader = s.check()
		}
		if schema == nil || reader == nil {
			t.Errorf("%s: the schema says %v, the reader %v", name, schema, reader)
		}
	}
}

// TestSchemaHasTheMembersOfTheTypes: none is missing, none is there that is not written, and required is what is always there.
func TestSchemaHasTheMembersOfTheTypes(t *testing.T) {
	b, err := os.ReadFile(receiptSchema)
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(b, &root); err != nil {
		t.Fatal(err)
	}
	defs := root["$defs"].(map[string]any)
	sameMembers(t, defs, "receipt", root, reflect.TypeFor[Receipt]())
	sameMembers(t, defs, "statement", defs["statement"].(map[string]any), reflect.TypeFor[Statement]())
	var reasons []string
	for _, r := range defs["reason"].(map[string]any)["enum"].([]any) {
		reasons = append(reasons, r.(string))
	}
	for _, r := range Reasons {
		if !slices.Contains(reasons, string(r)) {
			t.Errorf("the schema has no reason %s", r)
		}
	}
	if len(reasons) != len(Reasons) {
		t.Errorf("the schema has %d reasons, the type %d", len(reasons), len(Reasons))
	}
}

func sameMembers(t *testing.T, defs map[string]any, path string, schema map[string]any, typ reflect.Type) {
	t.Helper()
	if ref, ok := schema["$ref"].(string); ok {
		schema = defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
	}
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct {
		if typ == reflect.TypeFor[[]Event]() {
			return // has a schema of its own
		}
		sameMembers(t, defs, path+"[]", schema["items"].(map[string]any), typ.Elem())
		return
	}
	if typ.Kind() != reflect.Struct {
		return
	}
	properties, _ := schema["properties"].(map[string]any)
	var names, always []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
		if option != "omitempty" {
			always = append(always, name)
		}
		p, ok := properties[name].(map[string]any)
		if !ok {
			t.Errorf("%s.%s: the schema has no such member", path, name)
			continue
		}
		sameMembers(t, defs, path+"."+name, p, f.Type)
	}
	required := []string{}
	for _, r := range anys(schema["required"]) {
		required = append(required, fmt.Sprint(r))
	}
	slices.Sort(names)
	slices.Sort(always)
	slices.Sort(required)
	if got := slices.Sorted(maps.Keys(properties)); !slices.Equal(got, names) {
		t.Errorf("%s: the schema has %q, the type %q", path, got, names)
	}
	if !slices.Equal(required, always) {
		t.Errorf("%s: the schema requires %q, the type always has %q", path, required, always)
	}
	if schema["additionalProperties"] != false {
		t.Errorf("%s: the schema lets other members pass", path)
	}
}

func anys(v any) []any { l, _ := v.([]any); return l }
