package manifest

import (
	"strconv"
	"strings"
)

// object reads the members of a JSON object by name and knows which it was asked for, so that done can refuse the
// rest. A nil object has no members: optional objects need no special case.
type object struct {
	r       *reader
	n       *node
	members map[string]*node
	known   map[string]bool
}

func (r *reader) object(n *node) *object {
	if n.kind != '{' {
		r.problem(n.path, "is %v, want an object", n)
		return nil
	}
	o := &object{r, n, map[string]*node{}, map[string]bool{}}
	for _, m := range n.members {
		o.members[m.name] = m.value
	}
	return o
}

func (o *object) has(name string) bool { return o != nil && o.members[name] != nil }

// get is the member of that name if it is there and of that kind.
func (o *object) get(name string, kind byte) *node {
	if o == nil {
		return nil
	}
	o.known[name] = true
	n := o.members[name]
	if n != nil && n.kind != kind {
		o.r.problem(n.path, "is %v, want %v", n, &node{kind: kind})
		return nil
	}
	return n
}

// member is the member of that name, of whatever kind.
func (o *object) member(name string) *node {
	if o == nil {
		return nil
	}
	o.known[name] = true
	return o.members[name]
}

// text is a string without control characters; absent is empty.
func (o *object) text(name string) string {
	if n := o.get(name, '"'); n != nil {
		o.r.plain(n)
		return n.text
	}
	return ""
}

// flag is a boolean, and otherwise what an absent one means.
func (o *object) flag(name string, absent bool) bool {
	if n := o.get(name, 't'); n != nil {
		return n.text == "true"
	}
	return absent
}

// number is an integer from low to high, written without fraction or exponent; absent is what it was.
func (o *object) number(name string, v *int64, low, high int64) {
	if n := o.get(name, '0'); n != nil {
		*v = o.r.number(n, low, high)
	}
}

func (o *object) child(name string) *object {
	if n := o.get(name, '{'); n != nil {
		return o.r.object(n)
	}
	return nil
}

func (o *object) list(name string) []*node {
	if n := o.get(name, '['); n != nil {
		return n.items
	}
	return nil
}

// texts is a list of strings without NUL; absent is nil, and an empty list is not.
func (o *object) texts(name string) []string {
	list := o.get(name, '[')
	if list == nil {
		return nil
	}
	all := []string{}
	for _, n := range list.items {
		if n.kind != '"' {
			o.r.problem(n.path, "is %v, want a string", n)
			continue
		}
		o.r.noNUL(n)
		all = append(all, n.text)
	}
	return all
}

// later refuses members that the format has and this build has not: they must not be ignored.
func (o *object) later(names ...string) {
	for _, name := range names {
		if o.has(name) {
			o.known[name] = true
			o.r.problem(o.path(name), "is not supported in this build")
		}
	}
}

// done refuses members that nobody asked for.
func (o *object) done() {
	if o == nil {
		return
	}
	for _, m := range o.n.members {
		if o.known[m.name] {
			continue
		}
		meant := ""
		for name := range o.known {
			if strings.EqualFold(name, m.name) {
				meant = name
			}
		}
		if meant != "" {
			o.r.problem(m.value.path, "is %q in another case; keys are written exactly", meant)
		} else {
			o.r.problem(m.value.path, "is an unknown key")
		}
	}
}

// path is where the member of that name is, or would be.
func (o *object) path(name string) string { return join(o.n.path, name) }

func (r *reader) number(n *node, low, high int64) int64 {
	if n.kind != '0' {
		r.problem(n.path, "is %v, want a number", n)
		return 0
	}
	v, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil || v < low || v > high {
		r.problem(n.path, "is %.40s, want an integer from %d to %d", n.text, low, high)
		return 0
	}
	return v
}

func (r *reader) plain(n *node) {
	for _, c := range n.text {
		if c < ' ' || c == 0x7f {
			r.problem(n.path, "has a control character, %U", c)
			return
		}
	}
}

func (r *reader) noNUL(n *node) {
	if strings.ContainsRune(n.text, 0) {
		r.problem(n.path, "has a NUL, which no argument or variable can carry")
	}
}
