package manifest

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const resolved = "sha256:7777777777777777777777777777777777777777777777777777777777777777"

func TestPinChangesNothingButReferences(t *testing.T) {
	for _, name := range []string{"remote.json", "remote-source.json", "computation.json", "own.json"} {
		t.Run(name, func(t *testing.T) {
			raw := load(t, name)
			asked := map[string]int{}
			resolve := func(uri string) (string, error) { asked[uri]++; return resolved, nil }
			pinned, err := Pin(raw, resolve)
			if err != nil {
				t.Fatal(err)
			}
			want := string(raw)
			for uri := range asked {
				want = strings.ReplaceAll(want, `"`+uri+`"`, `"`+uri+"@"+resolved+`"`)
			}
			if d := cmp.Diff(want, string(pinned)); d != "" {
				t.Error(d)
			}
			if name != "own.json" && len(asked) == 0 {
				t.Error("nothing was resolved")
			}
			m, err := Parse(pinned, only("http"))
			if err != nil {
				t.Fatalf("what Pin wrote is refused: %v", err)
			}
			if !m.Algorithm.Pinned() {
				t.Errorf("%s is not pinned", m.Algorithm.URI)
			}
			again, err := Pin(pinned, func(uri string) (string, error) { return "", errors.New("asked for " + uri) })
			if err != nil || !bytes.Equal(again, pinned) {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

func TestPinKeepsEscapesAndAsksOnce(t *testing.T) {
	raw := "{\"computation_id\":\"c\",\t\"datasets\":[{\"uri\": \"docker:\\/\\/r.example\\/aa:v1\"}],\r\n \"algorithm\":{\"uri\":\"docker://r.example/aa:v1\"}}"
	asked := 0
	pinned, err := Pin([]byte(raw), func(uri string) (string, error) { asked++; return resolved, nil })
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.ReplaceAll(raw, "aa:v1", "aa:v1@"+resolved); string(pinned) != want || asked != 1 {
		t.Errorf("asked %d times:\n%s\nwant\n%s", asked, pinned, want)
	}
}

func TestPinReportsEveryReferenceItCannotResolve(t *testing.T) {
	_, err := Pin(load(t, "remote.json"), func(uri string) (string, error) {
		if strings.Contains(uri, "iris") {
			return "latest", nil
		}
		return "", errors.New("no such image")
	})
	for _, want := range []string{"algorithm.uri: ", "no such image", "datasets[0].uri: ", "want sha256:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
	if _, err := Pin([]byte(`{}`), nil); err == nil {
		t.Error("a manifest in no spelling was pinned")
	}
}
