package mkimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"

	"github.com/ampoule-vm/ampoule/internal/disk"
	"github.com/ampoule-vm/ampoule/internal/uki"
)

// A Difference is where two builds of one file part.
type Difference struct {
	File   string `json:"file"`
	Within string `json:"within,omitempty"` // containers and their members, outermost first, as in "section .initrd > init"
	Offset int64  `json:"offset"`           // of the first byte that differs, in the innermost member; -1 for one that only one of the two has
	Have   string `json:"have"`             // what is there
	Want   string `json:"want"`             // what was built
}

func (d Difference) String() string {
	where := d.File
	if d.Within != "" {
		where += " > " + d.Within
	}
	if d.Offset < 0 {
		return fmt.Sprintf("%s: %s, and the build has %s", where, d.Have, d.Want)
	}
	return fmt.Sprintf("%s: byte %d is %s, and the build has %s", where, d.Offset, d.Have, d.Want)
}

const (
	maxUnpacked = 1 << 30 // of a compressed member
	maxNesting  = 8       // of containers
)

// differences descends into have and want as far as it knows their formats, and names the innermost members that differ.
func differences(file string, have, want []byte) []Difference {
	var all []Difference
	var descend func(within []string, have, want []byte)
	add := func(within []string, offset int64, have, want string) {
		all = append(all, Difference{file, strings.Join(within, " > "), offset, have, want})
	}
	descend = func(within []string, have, want []byte) {
		if bytes.Equal(have, want) {
			return
		}
		a, b := members(have), members(want)
		before := len(all)
		if len(a) > 0 && len(b) > 0 && len(within) < maxNesting {
			for _, name := range slices.Compact(slices.Sorted(slices.Values(append(names(a), names(b)...)))) {
				x, xok := find(a, name)
				y, yok := find(b, name)
				inner := append(slices.Clone(within), name)
				switch {
				case !xok:
					add(inner, -1, "it is missing", fmt.Sprintf("%d bytes", len(y)))
				case !yok:
					add(inner, -1, fmt.Sprintf("%d bytes", len(x)), "no such member")
				default:
					descend(inner, x, y)
				}
			}
		}
		if len(all) == before { // not a container, or its members are the same and it is not
			at := firstDifference(have, want)
			add(within, int64(at), excerpt(have, at), excerpt(want, at))
		}
	}
	descend(nil, have, want)
	return all
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func excerpt(b []byte, at int) string {
	if at >= len(b) {
		return "the end"
	}
	b = b[at:min(at+16, len(b))]
	if text := strings.TrimRight(string(b), "\n"); strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return strconv.Quote(text)
	}
	return fmt.Sprintf("%x", b)
}

type member struct {
	name string
	data []byte
}

func names(all []member) (n []string) {
	for _, m := range all {
		n = append(n, m.name)
	}
	return n
}

func find(all []member, name string) ([]byte, bool) {
	i := slices.IndexFunc(all, func(m member) bool { return m.name == name })
	if i < 0 {
		return nil, false
	}
	return all[i].data, true
}

// members takes a container apart; nil when b is none that it knows. What is damaged is no container either: its bytes are compared.
func members(b []byte) []member {
	switch {
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		return unpacked("gunzipped", func() (io.Reader, error) { return gzip.NewReader(bytes.NewReader(b)) })
	case bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")):
		return unpacked("decompressed", func() (io.Reader, error) {
			return zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(largeWindow))
		})
	case bytes.HasPrefix(b, []byte("070701")):
		return cpioMembers(b)
	case bytes.HasPrefix(b, []byte("\x7fELF")):
		return elfMembers(b)
	case bytes.HasPrefix(b, []byte("MZ")):
		sections, _ := uki.Sections(b)
		var all []member
		for _, s := range sections {
			all = append(all, member{"section " + s.Name, s.Data})
		}
		if s, err := uki.Signature(b); err == nil && s != nil {
			all = append(all, member{"signature", s})
		}
		return all
	case len(b) > 512 && string(b[257:262]) == "ustar":
		return tarMembers(b)
	case len(b) > 512 && bytes.HasPrefix(b[len(b)-512:], []byte("conectix")):
		return []member{{"disk", b[:len(b)-512]}, {"footer", b[len(b)-512:]}}
	case len(b) > 0 && b[0] == '{':
		return jsonMembers(b)
	}
	var all []member
	for _, p := range disk.Parts(b) {
		all = append(all, member{p.Name, p.Data})
	}
	return all
}

func unpacked(name string, open func() (io.Reader, error)) []member {
	r, err := open()
	if err != nil {
		return nil
	}
	if c, ok := r.(interface{ Close() }); ok {
		defer c.Close()
	}
	b, err := io.ReadAll(io.LimitReader(r, maxUnpacked+1))
	if err != nil || len(b) > maxUnpacked {
		return nil
	}
	return []member{{name, b}}
}

// cpioMembers reads one archive, and gives what follows it, a compressed one in a UKI, as a member.
func cpioMembers(b []byte) []member {
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(b)))
	if err != nil {
		return nil
	}
	var all []member
	for _, r := range records {
		if r.Mode&cpio.S_IFMT != cpio.S_IFREG {
			continue
		}
		data, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		if err != nil {
			return nil
		}
		all = append(all, member{r.Name, data})
	}
	if i := bytes.Index(b, []byte("TRAILER!!!")); i >= 0 {
		if rest := bytes.TrimLeft(b[i+len("TRAILER!!!"):], "\x00"); len(rest) > 0 {
			all = append(all, member{"what follows", rest})
		}
	}
	return all
}

func elfMembers(b []byte) []member {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	var all []member
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOBITS && s.Offset+s.FileSize <= uint64(len(b)) && s.FileSize > 0 {
			all = append(all, member{"section " + s.Name, b[s.Offset:][:s.FileSize]})
		}
	}
	return all
}

// tarMembers gives each entry's header and what is stored of it, without expanding holes.
func tarMembers(b []byte) []member {
	var all []member
	for len(b) >= 512 && b[0] != 0 {
		name := string(bytes.TrimRight(b[:100], "\x00"))
		size, err := strconv.ParseInt(strings.Trim(string(b[124:136]), " \x00"), 8, 64)
		header := 512
		for more := b[156] == 'S' && b[482] == 1; more && len(b) >= header+512; header += 512 {
			more = b[header+504] == 1
		}
		if err != nil || size < 0 || size > int64(len(b)-header) {
			return nil
		}
		all = append(all, member{"header of " + name, b[:header]}, member{name, b[header:][:size]})
		b = b[min(int64(len(b)), int64(header)+(size+511)&^511):]
	}
	return all
}

// jsonMembers gives the leaves of a document by their paths.
func jsonMembers(b []byte) []member {
	var v any
	if json.Unmarshal(b, &v) != nil {
		return nil
	}
	var all []member
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				walk(strings.TrimPrefix(path+"."+k, "."), v[k])
			}
		case []any:
			for i, e := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), e)
			}
		default:
			text, _ := json.Marshal(v) // it came out of a document
			all = append(all, member{path, append([]byte(" "), text...)})
		}
	}
	walk("", v)
	return all
}
