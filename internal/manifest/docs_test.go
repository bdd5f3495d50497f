package manifest

import (
	"os"
	"regexp"
	"testing"
)

// The examples of the reference are manifests.
func TestExamplesInTheReferenceParse(t *testing.T) {
	b, err := os.ReadFile("../../docs/MANIFEST.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(b, -1)
	if len(examples) != 2 {
		t.Fatalf("%d examples, want 2", len(examples))
	}
	for i, e := range examples {
		var allow func(string) bool // the first is as strict as can be
		if i > 0 {
			allow = everything
		}
		if _, err := Parse(e[1], allow); err != nil {
			t.Errorf("example %d: %v", i, err)
		}
	}
}
