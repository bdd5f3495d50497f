package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// nobody is the user and the group of a workload that names none, or root: what distroless images call nonroot.
const nobody = 65532

// maxPasswd bounds /etc/passwd and /etc/group of an image, bytes.
const maxPasswd = 1 << 20

// LookupUser resolves USER of an image config, "user", "uid", "user:group" or "uid:gid", with the image's own
// /etc/passwd and /etc/group. It never returns 0: who asks for root, or for nothing, is 65532. There are no
// supplementary groups.
func LookupUser(root, user string) (uid, gid int, err error) {
	if user == "" {
		return nobody, nobody, nil
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return 0, 0, err
	}
	defer r.Close()
	name, group, hasGroup := strings.Cut(user, ":")

	entry, err := lookup(r, "etc/passwd", name, 4)
	if err != nil {
		return 0, 0, fmt.Errorf("user %q: %w", name, err)
	}
	uid, gid = entry[0], entry[1]
	if hasGroup {
		entry, err := lookup(r, "etc/group", group, 3)
		if err != nil {
			return 0, 0, fmt.Errorf("group %q: %w", group, err)
		}
		gid = entry[0]
	}
	if uid == 0 {
		return nobody, nobody, nil
	}
	if gid == 0 {
		gid = nobody
	}
	return uid, gid, nil
}

// lookup finds a line of a file like /etc/passwd by its first field, or by its third if key is a number, and returns
// the third and, of a passwd line, the fourth. A number needs no line.
func lookup(r *os.Root, file, key string, fields int) (ids [2]int, err error) {
	number, err := parseID(key)
	byNumber := err == nil
	b, err := readBounded(r, file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ids, err
	}
	for line := range bytes.Lines(b) {
		f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
		if len(f) < fields {
			continue
		}
		id, err := parseID(f[2])
		if err != nil || (byNumber && id != number) || (!byNumber && (f[0] != key || key == "")) {
			continue
		}
		ids[0] = id
		if fields > 3 {
			if ids[1], err = parseID(f[3]); err != nil {
				return ids, fmt.Errorf("/%s: %w", file, err)
			}
		}
		return ids, nil
	}
	if byNumber {
		return [2]int{number}, nil
	}
	return ids, fmt.Errorf("not in the image's /%s; give the number", file)
}

// parseID takes decimal digits only: neither -1, which setuid(2) takes for "leave it", nor anything that wraps to 0.
func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("id %q is not a number from 0 to 2147483647", s)
	}
	return int(n), nil
}

func readBounded(r *os.Root, name string) ([]byte, error) {
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPasswd+1))
	if len(b) > maxPasswd {
		return nil, fmt.Errorf("/%s has more than %d bytes", name, maxPasswd)
	}
	return b, err
}
