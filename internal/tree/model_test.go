package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An item is an archive's entry.
type item struct {
	tar.Header
	body string
}

// A model is what the layers of an image mean, in the plainest words: a tree in memory, in which every name knows the layer that made it.
type model struct {
	root  *node
	layer int
}

type node struct {
	dir   map[string]*name // of a directory
	link  string           // of a symbolic link
	body  string
	owner [2]int
	mode  int64
	mtime time.Time // zero: not said
}

type name struct {
	*node
	layer int
}

var errModel = errors.New("the model refuses")

func newModel() *model {
	return &model{root: &node{dir: map[string]*name{}, mode: 0o755}, layer: 1}
}

func clean(s string) []string {
	return slices.DeleteFunc(strings.Split(s, "/"), func(p string) bool { return p == "" || p == "." })
}

func (m *model) at(p []string) *node {
	n := m.root
	for _, c := range p {
		n = n.dir[c].node
	}
	return n
}

// touch says that the current layer holds p, and so its parents.
func (m *model) touch(p []string) {
	n := m.root
	for _, c := range p {
		n.dir[c].layer = m.layer
		n = n.dir[c].node
	}
}

// walk follows a path to a directory, as chroot would, and says where that is.
func (m *model) walk(todo []string, create bool) (at []string, err error) {
	for links := 0; len(todo) > 0; {
		p := todo[0]
		todo = todo[1:]
		if p == ".." {
			at = at[:max(0, len(at)-1)]
			continue
		}
		here := m.at(at)
		next := here.dir[p]
		switch {
		case next == nil && !create:
			return nil, fs.ErrNotExist
		case next == nil:
			here.dir[p] = &name{&node{dir: map[string]*name{}, mode: 0o755}, m.layer}
			at = append(slices.Clone(at), p)
			m.touch(at)
		case next.dir != nil:
			at = append(slices.Clone(at), p)
		case next.link != "":
			if links++; links > maxLinks {
				return nil, errModel
			}
			if next.link[0] == '/' {
				at = nil
			}
			todo = append(clean(next.link), todo...)
		default:
			return nil, errModel
		}
	}
	return at, nil
}

// sweep removes what is from lower layers.
func (m *model) sweep(n *node) {
	for c, e := range n.dir {
		if e.layer < m.layer {
			delete(n.dir, c)
		} else if e.dir != nil {
			m.sweep(e.node)
		}
	}
}

// apply does what an entry says, or changes nothing.
func (m *model) apply(i *item) error {
	p := clean(i.Name)
	said := node{owner: [2]int{i.Uid, i.Gid}, mode: i.Mode & 0o777, mtime: i.ModTime}
	if i.Typeflag == tar.TypeDir {
		said.mode = i.Mode & 0o1777
	}
	if len(p) == 0 {
		said.dir = m.root.dir
		*m.root = said
		return nil
	}
	dir, base := p[:len(p)-1], p[len(p)-1]
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		at, err := m.walk(dir, false)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		n := m.at(at)
		if base == opaque {
			m.sweep(n)
		} else if e := n.dir[hidden]; e != nil && e.layer < m.layer {
			delete(n.dir, hidden)
		} else if e != nil && e.dir != nil {
			m.sweep(e.node)
		}
		return nil
	}
	at, err := m.walk(dir, false)
	was := m
	if errors.Is(err, fs.ErrNotExist) {
		was = m.copy()
		at, err = m.walk(dir, true)
	}
	if err != nil {
		*m = *was
		return err
	}
	parent := m.at(at)
	full := append(slices.Clone(at), base)
	var made *node
	switch i.Typeflag {
	case tar.TypeLink:
		if made = m.target(clean(i.Linkname), full); made == nil {
			*m = *was
			return errModel
		}
	case tar.TypeDir:
		said.dir = map[string]*name{}
		if old := parent.dir[base]; old != nil && old.dir != nil {
			said.dir = old.dir
		}
		made = &said
	case tar.TypeSymlink:
		said.link, said.mode = i.Linkname, 0o777
		made = &said
	default:
		said.body = i.body
		made = &said
	}
	parent.dir[base] = &name{made, m.layer}
	m.touch(full)
	return nil
}

// target is what a hard link at full is to, or nil.
func (m *model) target(to, full []string) *node {
	from, err := m.walk(to[:len(to)-1], false)
	if err != nil {
		return nil
	}
	to = append(slices.Clone(from), to[len(to)-1])
	target := m.at(from).dir[to[len(to)-1]]
	if target == nil || target.dir != nil || len(to) >= len(full) && slices.Equal(to[:len(full)], full) {
		return nil // to itself, or to what goes with the directory that the link replaces
	}
	return target.node
}

// list shows the model as [snapshot] shows a directory.
func (m *model) list() map[string]string {
	got := map[string]string{}
	first := map[*node]string{}
	var visit func(string, *node)
	visit = func(at string, n *node) {
		for _, c := range slices.Sorted(maps.Keys(n.dir)) {
			e, p := n.dir[c], path.Join(at, c)
			if e.dir != nil {
				got[p] = show('d', e.mode, e.owner, e.mtime, "")
				visit(p, e.node)
				continue
			}
			kind, body := byte('-'), e.body
			if e.link != "" {
				kind, body = 'l', e.link
			}
			got[p] = show(kind, e.mode, e.owner, e.mtime, body)
			if was, ok := first[e.node]; ok {
				got[p] += " is " + was
			} else {
				first[e.node] = p
			}
		}
	}
	visit("", m.root)
	got["."] = show('d', m.root.mode, m.root.owner, m.root.mtime, "")
	return got
}

func show(kind byte, mode int64, owner [2]int, mtime time.Time, body string) string {
	if os.Geteuid() != 0 {
		owner = [2]int{}
	}
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	return fmt.Sprintf("%c%04o %v %d %q", kind, mode, owner, mtime.UnixNano(), body)
}

// snapshot lists a directory. Times of directories that are unsaid count as the epoch.
func snapshot(t testing.TB, dir string, unsaid func(string, time.Time) bool) map[string]string {
	t.Helper()
	got := map[string]string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st := fi.Sys().(*syscall.Stat_t)
		kind, body, mtime := byte('-'), "", fi.ModTime()
		switch fi.Mode().Type() {
		case fs.ModeDir:
			if kind = 'd'; unsaid(rel, mtime) {
				mtime = time.Time{}
			}
		case fs.ModeSymlink:
			kind = 'l'
			body, err = os.Readlink(p)
		default:
			var b []byte
			b, err = os.ReadFile(p)
			body = string(b)
		}
		got[rel] = show(kind, int64(st.Mode&0o7777), [2]int{int(st.Uid), int(st.Gid)}, mtime, body)
		if kind != 'd' {
			if was, ok := first[st.Ino]; ok {
				got[rel] += " is " + was
			} else {
				first[st.Ino] = rel
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// unsaid are the directories of the model that no entry named.
func (m *model) unsaid(rel string, _ time.Time) bool {
	n := m.root
	for _, c := range clean(rel) {
		if n = n.dir[c].node; n == nil {
			return false
		}
	}
	return n.mtime.IsZero()
}

// A generator makes random layers of few names, so that they often meet. pick gives a number below its argument.
type generator struct{ pick func(int) int }

func (g generator) of(all ...string) string { return all[g.pick(len(all))] }

func (g generator) path() string {
	p := make([]string, 1+g.pick(4))
	for n := range p {
		p[n] = g.of("a", "b", "c", "d", "usr", "lib")
	}
	if g.pick(40) == 0 {
		p = append(p, strings.Repeat("long", 40), strings.Repeat("longer", 40))
	}
	if g.pick(400) == 0 {
		p = slices.Concat(slices.Repeat([]string{"deep"}, 60), p)
	}
	return strings.Join(p, "/")
}

func (g generator) item() *item {
	i := &item{Header: tar.Header{Name: g.path(), Mode: int64([]int{0o644, 0o755, 0o600, 0o444, 0o4755, 0o6711, 0o777, 0}[g.pick(8)])}}
	if os.Geteuid() != 0 {
		i.Mode |= 0o700
	}
	i.Uid, i.Gid = g.pick(3)*1000, g.pick(2)*50
	i.ModTime = time.Unix(1_600_000_000+int64(g.pick(1000)), int64(g.pick(2)*123_456_789))
	if i.ModTime.Nanosecond() != 0 {
		i.Format = tar.FormatPAX
	}
	dir, base := path.Split(i.Name)
	switch k := g.pick(20); {
	case k < 8:
		i.Typeflag = tar.TypeReg
		i.body = strings.Repeat(g.of("x", "yz", "\x00"), g.pick(3)*g.pick(3000))
	case k < 12:
		i.Typeflag, i.Mode = tar.TypeDir, int64([]int{0o755, 0o700, 0o1777, 0o750}[g.pick(4)])
		if g.pick(12) == 0 {
			i.Name = "."
		}
		i.Name += "/"
	case k < 15:
		i.Typeflag, i.Linkname = tar.TypeSymlink, g.of("", "/", "../", "../../", "./", "/../", "/usr/")+g.path()
	case k < 17:
		i.Typeflag, i.Linkname = tar.TypeLink, g.of("", "/", "./")+g.path()
	case k < 19:
		i.Typeflag, i.Name, i.Mode = tar.TypeReg, dir+whiteout+base, 0o644
	default:
		i.Typeflag, i.Name, i.Mode = tar.TypeReg, dir+opaque, 0o644
	}
	if i.Typeflag == tar.TypeReg {
		i.Size = int64(len(i.body))
	}
	if g.pick(10) == 0 {
		i.Name = g.of("./", "/", ".//") + i.Name
	}
	return i
}

// layers makes some, applies them to a model, and returns their archives. With refused, they end with the entry that the model refuses;
// otherwise they have none of these.
func (g generator) layers(t testing.TB, refused bool) (*model, [][]byte, error) {
	t.Helper()
	m := newModel()
	var archives [][]byte
	for range 1 + g.pick(4) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for range 1 + g.pick(40) {
			i := g.item()
			err := m.apply(i)
			if err != nil && !refused {
				continue
			}
			if err := w.WriteHeader(&i.Header); err != nil {
				t.Fatal(err)
			}
			w.Write([]byte(i.body))
			if err != nil {
				w.Close()
				return m, append(archives, b.Bytes()), err
			}
		}
		w.Close()
		archives = append(archives, b.Bytes())
		m.layer++
	}
	return m, archives, nil
}

func (m *model) copy() *model {
	same := map[*node]*node{}
	var dup func(*node) *node
	dup = func(n *node) *node {
		if c, ok := same[n]; ok {
			return c
		}
		c := *n
		same[n] = &c
		if n.dir != nil {
			c.dir = map[string]*name{}
			for k, e := range n.dir {
				c.dir[k] = &name{dup(e.node), e.layer}
			}
		}
		return &c
	}
	return &model{dup(m.root), m.layer}
}

// FuzzModel unpacks layers made of the input, and looks whether the tree is what the model says.
func FuzzModel(f *testing.F) {
	for seed := range uint64(40) {
		b := make([]byte, 100+10*seed)
		chacha(seed).Read(b)
		f.Add(b, seed%4 == 0)
	}
	f.Fuzz(func(t *testing.T, b []byte, refused bool) {
		g := generator{func(n int) int {
			if len(b) < 2 {
				return 0
			}
			v := int(b[0])<<8 | int(b[1])
			b = b[2:]
			return v % n
		}}
		m, archives, want := g.layers(t, refused)
		dir, err := unpackTars(t, Limits{Chown: os.Geteuid() == 0}, archives...)
		if (err != nil) != (want != nil) {
			t.Fatalf("error %v, the model has %v", err, want)
		}
		if err != nil {
			return
		}
		if diff := cmp.Diff(m.list(), snapshot(t, dir, m.unsaid)); diff != "" {
			t.Errorf("tree (-model +got):\n%s", diff)
		}
	})
}
