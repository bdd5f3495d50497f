package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// A span of JSON text: a value with what is needed to take it out or put something beside it.
type node struct {
	path       string
	start, end int // of the value
	from       int // of the member's name or of the value; a comma before it is not in it
	kind       byte
	n          int // place in its object or array
	last       bool
}

// nodes finds every value of a document without white space.
func nodes(t testing.TB, doc []byte) (all []node) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	var walk func(path string, from, n int)
	next := func() json.Token {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	begin := func() int { // of the next token: after a comma or colon
		at := int(d.InputOffset())
		for doc[at] == ',' || doc[at] == ':' {
			at++
		}
		return at
	}
	walk = func(path string, from, n int) {
		start := begin()
		if from < 0 {
			from = start
		}
		at := len(all)
		all = append(all, node{path: path, start: start, from: from, kind: doc[start], n: n})
		switch next() {
		case json.Delim('{'):
			last := -1
			for i := 0; d.More(); i++ {
				from := begin()
				name := next().(string)
				last = len(all)
				walk(path+"."+name, from, i)
			}
			next()
			if last >= 0 {
				all[last].last = true
			}
		case json.Delim('['):
			last := -1
			for i := 0; d.More(); i++ {
				last = len(all)
				walk(fmt.Sprintf("%s[%d]", path, i), -1, i)
			}
			next()
			if last >= 0 {
				all[last].last = true
			}
		}
		all[at].end = int(d.InputOffset())
	}
	walk("", -1, 0)
	return all
}

// alterations gives every document that differs from doc in one leaf, or has one member or element more or less.
func alterations(t testing.TB, doc []byte, visit func(what string, altered []byte)) {
	t.Helper()
	splice := func(from, to int, with string) []byte {
		return []byte(string(doc[:from]) + with + string(doc[to:]))
	}
	for _, n := range nodes(t, doc) {
		value := string(doc[n.start:n.end])
		switch n.kind {
		case '{':
			more := `{"added":1`
			if value != "{}" {
				more += ","
			}
			visit(n.path+" with a member more", splice(n.start, n.start+1, more))
		case '[':
			more := "[0"
			if value != "[]" {
				more += ","
			}
			visit(n.path+" with an element more", splice(n.start, n.start+1, more))
		case '"':
			text := value[1 : len(value)-1]
			for at := 0; at < len(text); at += max(1, len(text)/150) {
				c := "A"
				if text[at] == 'A' {
					c = "B"
				}
				visit(fmt.Sprintf("%s at %d", n.path, at), splice(n.start+1+at, n.start+2+at, c))
			}
			if text != "" {
				visit(n.path+" empty", splice(n.start, n.end, `""`))
			}
			visit(n.path+" longer", splice(n.end-1, n.end-1, "A"))
			visit(n.path+" null", splice(n.start, n.end, "null"))
		case 't', 'f':
			visit(n.path+" turned", splice(n.start, n.end, fmt.Sprint(value == "false")))
		case 'n':
			visit(n.path+" not null", splice(n.start, n.end, "0"))
		default:
			other := "1"
			if value == "1" {
				other = "2"
			}
			visit(n.path+" another number", splice(n.start, n.end, other))
		}
		if n.path == "" {
			continue
		}
		// With the comma behind it or, as the last, before it.
		from, to := n.from, n.end
		switch {
		case !n.last:
			to++
		case n.n > 0:
			from--
		}
		visit(n.path+" removed", splice(from, to, ""))
	}
}

// TestAlteredReceipts: whatever is altered in a receipt, its statement, evidence or collateral, it does not verify.
func TestAlteredReceipts(t *testing.T) {
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			receipt, e := vector(t, kind, "receipt.json"), vectorExpect(t, kind)
			n := 0
			refuse := func(what string, b []byte) {
				n++
				if v, err := Receipt(b, e); err == nil || v != nil && v.Proven {
					t.Errorf("%s: passes", what)
				}
			}
			skip := map[string]int{}
			alterations(t, receipt, func(what string, b []byte) {
				// Of the bytes of reports and certificates that stand there as numbers, every fifth.
				if i := strings.LastIndexByte(what, '['); i >= 0 && strings.Contains(what, "].data[") || strings.Contains(what, "attestation_report") && i >= 0 {
					if skip[what[:i]]++; skip[what[:i]]%5 != 1 {
						return
					}
				}
				refuse(what, b)
			})
			var r struct{ Payload []byte }
			if err := json.Unmarshal(receipt, &r); err != nil {
				t.Fatal(err)
			}
			old := base64.StdEncoding.EncodeToString(r.Payload)
			alterations(t, r.Payload, func(what string, b []byte) {
				refuse("statement"+what, bytes.Replace(receipt, []byte(old), []byte(base64.StdEncoding.EncodeToString(b)), 1))
			})
			if n < 3000 {
				t.Errorf("only %d alterations were tried", n)
			}
			t.Logf("%d alterations", n)
		})
	}
}

// FuzzReceipt: whatever passes under the root of a vector is that vector's statement.
func FuzzReceipt(f *testing.F) {
	e := vectorExpect(f, kinds[0])
	e.Strict = false
	want := factsOf(f, vector(f, kinds[0], "receipt.json"))
	for _, name := range []string{"receipt.json", "receipt-bare.json"} {
		f.Add(vector(f, kinds[0], name))
	}
	for name := range refusals(kinds[0]) {
		f.Add(vector(f, kinds[0], "refused/"+name+".json"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := Receipt(b, e); err == nil {
			if got := factsOf(t, b); !bytes.Equal(got, want) || !v.Proven {
				t.Errorf("a statement that was never signed: %s", got)
			}
		}
	})
}
