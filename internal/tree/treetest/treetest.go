// Package treetest makes archives for tests of what unpacks them, and shows what came of it.
package treetest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An Entry is one of an archive.
type Entry struct {
	Name string
	Type byte // default: '0', or '5' if the name ends in a slash
	Body string
	Link string
	Mode int64
	UID  int
}

// Tar makes an archive.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Typeflag: e.Type, Linkname: e.Link, Mode: cmp.Or(e.Mode, 0o644), Uid: e.UID, Gid: e.UID}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.Name, "/") {
				h.Typeflag, h.Mode = tar.TypeDir, cmp.Or(e.Mode, 0o755)
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.Body))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, e.Body)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// List shows a tree as name → "mode content".
func List(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			got[name] = fi.Mode().String()
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(p)
			got[name] = "-> " + to
			return err
		default:
			b, err := os.ReadFile(p)
			got[name] = fi.Mode().String() + " " + string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// File, Link and Hard are a file with its contents, a symbolic link and a hard link.
func File(name, body string) Entry { return Entry{Name: name, Body: body} }
func Link(name, to string) Entry   { return Entry{Name: name, Type: tar.TypeSymlink, Link: to} }
func Hard(name, to string) Entry   { return Entry{Name: name, Type: tar.TypeLink, Link: to} }
