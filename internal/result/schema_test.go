package result

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const eventSchema = "../../docs/events.schema.json"

func compile(t *testing.T, path string) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestEventSchemaAgrees holds docs/events.schema.json against ParseEvent: what one takes or refuses, so does the other.
func TestEventSchemaAgrees(t *testing.T) {
	schema := compile(t, eventSchema)
	judge := func(line []byte) error {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			return err
		}
		return schema.Validate(v)
	}
	for _, e := range events {
		if err := judge(e.Line()); err != nil {
			t.Errorf("%s: %v", e.Line(), err)
		}
	}
	// Of what a schema does not see: a length in bytes, the one form, characters beyond C1.
	unseen := []string{"a member twice", "a line over 64 KiB", "output longer than its stream", "output that turns the text", "output that is no UTF-8"}
	for name, line := range refused {
		err := judge([]byte(line))
		if strings.Contains(strings.Join(unseen, ";"), name) {
			continue
		}
		if err == nil {
			t.Errorf("%s: the schema takes %s", name, line)
		}
	}
}

// TestEventSchemaIsComplete: the schema has the members of the type, in their order, and its words are ours.
func TestEventSchemaIsComplete(t *testing.T) {
	b, err := os.ReadFile(eventSchema)
	if err != nil {
		t.Fatal(err)
	}
	var schema struct{ Properties json.RawMessage }
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Event]()) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want = append(want, name)
	}
	if d := cmp.Diff(want, keys(t, schema.Properties)); d != "" {
		t.Errorf("members (-type +schema):\n%s", d)
	}
	var members map[string]struct {
		Enum        []string
		Description string
		Maximum     *int
		MaxLength   int
	}
	if err := json.Unmarshal(schema.Properties, &members); err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, r := range Reasons {
		reasons = append(reasons, string(r))
	}
	for name, want := range map[string][]string{
		"event": {StepEvent, ProgressEvent, OutputEvent, OutcomeEvent}, "state": {Start, Done, Failed},
		"stream": {Stdout, Stderr}, "reason": reasons,
	} {
		if d := cmp.Diff(want, members[name].Enum); d != "" {
			t.Errorf("%s (-ours +schema):\n%s", name, d)
		}
	}
	for name, m := range members {
		if m.Description == "" {
			t.Errorf("%s has no description", name)
		}
	}
	if *members["input"].Maximum != MaxInputs-1 || members["text"].MaxLength != MaxOutputText {
		t.Errorf("bounds %d and %d", *members["input"].Maximum, members["text"].MaxLength)
	}
}

// keys are the names of an object's members, in their order.
func keys(t *testing.T, object []byte) (names []string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			t.Fatal(err)
		}
	}
	return names
}
