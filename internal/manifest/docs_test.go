package manifest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The example of files is as strict as can be.
func TestExampleOfFilesParses(t *testing.T) {
	b, err := os.ReadFile("../../docs/OBJECTS.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```json\n(.*?)```").FindSubmatch(b)
	if example == nil {
		t.Fatal("there is no example")
	}
	m, err := Parse(example[1], nil)
	if err != nil || len(m.Stores) != 2 || m.StoreOf(m.Datasets[1]) != &m.Stores[0] || m.StoreOf(m.Datasets[2]) != &m.Stores[1] {
		t.Errorf("%+v, %v", m, err)
	}
}

// The examples of the reference are manifests.
func TestExamplesInTheReferenceParse(t *testing.T) {
	b, err := os.ReadFile("../../docs/MANIFEST.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(b, -1)
	if len(examples) != 4 {
		t.Fatalf("%d examples, want 4", len(examples))
	}
	for i, e := range examples {
		var allow func(string) bool // those in our spelling are as strict as can be
		if i == len(examples)-1 {
			allow = everything
		}
		if _, err := Parse(e[1], allow); err != nil {
			t.Errorf("example %d: %v", i, err)
		}
	}
}

// The examples of kinds are as strict as can be.
func TestExamplesOfKindsParse(t *testing.T) {
	b, err := os.ReadFile("../../docs/WORKLOADS.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds, _, _ := strings.Cut(string(b), "## Sandbox")
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(kinds, -1)
	if len(examples) != 2 {
		t.Fatalf("%d examples, want 2", len(examples))
	}
	for i, e := range examples {
		if _, err := Parse([]byte(e[1]), nil); err != nil {
			t.Errorf("example %d: %v", i, err)
		}
	}
}
