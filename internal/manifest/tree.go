package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	maxDepth  = 32      // of nesting
	maxValues = 1 << 16 // so that a megabyte of commas does not become a hundred of nodes
)

// node is one JSON value and where it stands.
type node struct {
	path       string
	kind       byte   // '{' '[' '"' '0' (number) 't' (true or false) 'n' (null)
	text       string // of a string, decoded; of a number or boolean, as written
	start, end int    // of the value's bytes; known for strings and objects only
	members    []member
	items      []*node
}

type member struct {
	name  string
	value *node
}

func (n *node) String() string {
	return map[byte]string{'{': "an object", '[': "a list", '"': "a string", '0': "a number", 't': "true or false", 'n': "null"}[n.kind]
}

// reader turns bytes into a tree and a tree into a Manifest, and collects what is wrong on the way.
type reader struct {
	allow      func(string) bool
	problems   Problems
	references []*node // the strings that name images
	places     map[*Resource]place
	objects    map[*Resource]fileAt

	b      []byte
	d      *json.Decoder
	values int
}

// tree reads the whole of b as one JSON value. encoding/json checks the grammar; what it lets pass (names that come
// twice, broken UTF-8 and surrogates, any depth) is checked here.
func (r *reader) tree(b []byte) *node {
	if len(b) > MaxSize {
		r.problem("", "is %d bytes, at most %d", len(b), MaxSize)
		return nil
	}
	if !utf8.Valid(b) {
		i := 0
		for c, n := utf8.DecodeRune(b); c != utf8.RuneError || n != 1; c, n = utf8.DecodeRune(b[i:]) {
			i += n
		}
		r.problem("", "is not UTF-8 at %s", position(b, i))
		return nil
	}
	var all json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		at := len(b)
		if e, ok := errors.AsType[*json.SyntaxError](err); ok {
			at = max(int(e.Offset)-1, 0)
		}
		r.problem("", "is not JSON at %s: %v", position(b, at), err)
		return nil
	}
	r.b, r.d = b, json.NewDecoder(bytes.NewReader(b))
	r.d.UseNumber()
	n, err := r.value("", 0)
	if err != nil {
		r.problem("", "%v", err)
	}
	return n
}

// value reads one value. An error ends it all; problems do not.
func (r *reader) value(path string, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("is nested deeper than %d at %.200s", maxDepth, path)
	}
	if r.values++; r.values > maxValues {
		return nil, fmt.Errorf("has more than %d values", maxValues)
	}
	n := &node{path: path, start: int(r.d.InputOffset())}
	t, err := r.d.Token()
	if err != nil {
		return nil, err
	}
	n.end = int(r.d.InputOffset())
	switch v := t.(type) {
	case string:
		n.kind, n.text = '"', v
		n.start += bytes.IndexByte(r.b[n.start:n.end], '"')
		r.surrogates(n)
	case json.Number:
		n.kind, n.text = '0', v.String()
	case bool:
		n.kind, n.text = 't', strconv.FormatBool(v)
	case nil:
		n.kind = 'n'
	case json.Delim:
		n.kind = byte(v)
		if v == '{' {
			n.start += bytes.IndexByte(r.b[n.start:n.end], '{')
			err = r.membersOf(n, depth)
		} else {
			err = r.itemsOf(n, depth)
		}
		if err == nil {
			_, err = r.d.Token()
			n.end = int(r.d.InputOffset())
		}
	}
	return n, err
}

func (r *reader) membersOf(n *node, depth int) error {
	seen := map[string]bool{}
	for r.d.More() {
		start := int(r.d.InputOffset())
		t, err := r.d.Token()
		if err != nil {
			return err
		}
		name := t.(string) // the grammar was checked
		path := join(n.path, name)
		r.surrogates(&node{path: path, start: start, end: int(r.d.InputOffset())})
		v, err := r.value(path, depth+1)
		if err != nil {
			return err
		}
		if seen[name] {
			r.problem(path, "is there twice")
		}
		seen[name] = true
		n.members = append(n.members, member{name, v})
	}
	return nil
}

func (r *reader) itemsOf(n *node, depth int) error {
	for i := 0; r.d.More(); i++ {
		v, err := r.value(n.path+"["+strconv.Itoa(i)+"]", depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, v)
	}
	return nil
}

// surrogates refuses half a UTF-16 pair in a string's \u escapes. Decoders replace it, each in its own way, so the
// same bytes would mean two things.
func (r *reader) surrogates(n *node) {
	s := r.b[n.start:n.end]
	for i := 0; i+1 < len(s); i++ {
		if s[i] != '\\' {
			continue
		}
		i++
		if s[i] != 'u' {
			continue
		}
		first := escape(s[i+1:])
		i += 4
		if !utf16.IsSurrogate(first) {
			continue
		}
		if rest := s[i+1:]; len(rest) >= 6 && rest[0] == '\\' && rest[1] == 'u' && utf16.DecodeRune(first, escape(rest[2:])) != utf8.RuneError {
			i += 6
			continue
		}
		r.problem(n.path, "has half a surrogate pair, \\u%04x", first)
		return
	}
}

// escape is the value of four hex digits, which the grammar promises.
func escape(s []byte) rune {
	v, _ := strconv.ParseUint(string(s[:4]), 16, 16)
	return rune(v)
}

// join adds a member's name to a path, quoted unless it is a plain word.
func join(path, name string) string {
	plain := name != "" && len(name) <= 64
	for _, c := range []byte(name) {
		plain = plain && (c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	}
	switch {
	case !plain:
		return fmt.Sprintf("%s[%.64q]", path, name)
	case path == "":
		return name
	}
	return path + "." + name
}

// position is where byte i of b is, as editors count.
func position(b []byte, i int) string {
	before := b[:min(i, len(b))]
	return fmt.Sprintf("line %d, column %d", 1+bytes.Count(before, []byte("\n")), len(before)-bytes.LastIndexByte(before, '\n'))
}
