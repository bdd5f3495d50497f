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
