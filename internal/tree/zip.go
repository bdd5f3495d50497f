package tree

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Zip unpacks an archive (PKWARE APPNOTE 6.3.10, with zip64), which must be all of r, over what is there: stored and deflated files,
// directories, and symbolic links that stay inside the tree. The central directory says what the files are, and is read as a stream, for it
// may be long; the CRC-32 of every file is verified. Refused are encrypted entries, names that are there already, are said twice, have a
// backslash, or differ between directory and data, and files that share data.
//
// It is not archive/zip, which would hold the directory in memory, and make /init 100 kB larger.
func (t *Tree) Zip(r io.ReaderAt, size int64) error {
	t.used, t.lower = true, false
	d, err := findDirectory(r, size)
	if err != nil {
		return fmt.Errorf("%w: zip: %w", ErrFormat, err)
	}
	if d.entries > uint64(t.budget.entries) {
		return fmt.Errorf("%w: there are more than %d entries", ErrTooBig, t.lim.Entries)
	}
	z := &unzipper{
		t: t, r: r, start: d.start, left: d.start, size: size,
		dir:  bufio.NewReaderSize(io.NewSectionReader(r, d.start, d.size), 64<<10),
		data: bufio.NewReaderSize(nil, 64<<10),
	}
	for range d.entries {
		e, err := z.next()
		if err != nil {
			return fmt.Errorf("%w: zip: directory: %w", ErrFormat, err)
		}
		if err := z.unpack(e); err != nil {
			return fmt.Errorf("entry %.300q: %w", e.name, err)
		}
	}
	if n, _ := z.dir.Discard(1); n != 0 {
		return fmt.Errorf("%w: zip: the directory has more than its %d entries", ErrFormat, d.entries)
	}
	return t.forget()
}

// A directory is where a zip's entries are listed: the bytes before its end record.
type directory struct {
	start, size int64
	entries     uint64
}

// findDirectory reads the end of the archive (APPNOTE 4.3.14 to 4.3.16).
func findDirectory(r io.ReaderAt, size int64) (directory, error) {
	const endLen, locatorLen, end64Len = 22, 20, 56
	none := directory{}
	tail := make([]byte, min(size, endLen+math.MaxUint16+locatorLen))
	at := size - int64(len(tail))
	if _, err := io.ReadFull(io.NewSectionReader(r, at, int64(len(tail))), tail); err != nil {
		return none, err
	}
	le := binary.LittleEndian
	n := len(tail) - endLen
	for ; n >= 0; n-- { // a comment may be behind it, and nothing else
		if bytes.HasPrefix(tail[n:], []byte("PK\x05\x06")) && n+endLen+int(le.Uint16(tail[n+20:])) == len(tail) {
			break
		}
	}
	if n < 0 {
		return none, fmt.Errorf("no end record: it is no zip, or cut off")
	}
	end := tail[n:]
	d := directory{int64(le.Uint32(end[16:])), int64(le.Uint32(end[12:])), uint64(le.Uint16(end[10:]))}
	disks := uint64(le.Uint16(end[4:])) | uint64(le.Uint16(end[6:]))
	stop := at + int64(n)
	saturated := d.start == math.MaxUint32 || d.size == math.MaxUint32 || d.entries == math.MaxUint16
	if l := n - locatorLen; saturated && l >= 0 && bytes.HasPrefix(tail[l:], []byte("PK\x06\x07")) {
		off := le.Uint64(tail[l+8:])
		if off > uint64(at+int64(l)) {
			return none, fmt.Errorf("the zip64 end record is at %d, behind its locator", off)
		}
		b := make([]byte, end64Len)
		if _, err := r.ReadAt(b, int64(off)); err != nil {
			return none, err
		}
		start, length := le.Uint64(b[48:]), le.Uint64(b[40:])
		if !bytes.HasPrefix(b, []byte("PK\x06\x06")) || start > math.MaxInt64 || length > math.MaxInt64 {
			return none, fmt.Errorf("malformed zip64 end record")
		}
		d = directory{int64(start), int64(length), le.Uint64(b[32:])}
		disks, stop = uint64(le.Uint32(b[16:]))|uint64(le.Uint32(b[20:])), int64(off)
	}
	if disks != 0 {
		return none, fmt.Errorf("it is one of several parts")
	}
	if d.start > stop || d.size != stop-d.start {
		return none, fmt.Errorf("the directory has %d bytes from %d, its end is at %d; nothing may be before or between", d.size, d.start, stop)
	}
	return d, nil
}

// A zipped is an entry of the directory.
type zipped struct {
	name             string
	by, flags        uint16
	method           uint16
	crc, attrs       uint32
	packed, unpacked uint64
	offset           uint64
	modified         time.Time
}

type unzipper struct {
	t         *Tree
	r         io.ReaderAt
	dir, data *bufio.Reader
	inflate   io.ReadCloser
	start     int64 // of the directory, and so the end of the data
	left      int64 // bytes of data that no entry has taken
	size      int64
	total     int64 // bytes unpacked
	said      hashes
}

// next reads an entry of the directory (APPNOTE 4.3.12).
func (z *unzipper) next() (*zipped, error) {
	var h [46]byte
	if _, err := io.ReadFull(z.dir, h[:]); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(h[:], []byte("PK\x01\x02")) {
		return nil, fmt.Errorf("no entry where one should be")
	}
	le := binary.LittleEndian
	names, extras, comments := int(le.Uint16(h[28:])), int(le.Uint16(h[30:])), int(le.Uint16(h[32:]))
	b := make([]byte, names+extras)
	if _, err := io.ReadFull(z.dir, b); err != nil {
		return nil, err
	}
	if _, err := z.dir.Discard(comments); err != nil {
		return nil, err
	}
	e := &zipped{
		name: string(b[:names]),
		by:   le.Uint16(h[4:]) >> 8, flags: le.Uint16(h[8:]), method: le.Uint16(h[10:]),
		crc: le.Uint32(h[16:]), attrs: le.Uint32(h[38:]),
		packed: uint64(le.Uint32(h[20:])), unpacked: uint64(le.Uint32(h[24:])), offset: uint64(le.Uint32(h[42:])),
		modified: dosTime(le.Uint16(h[14:]), le.Uint16(h[12:])),
	}
	return e, e.extra(b[names:])
}

// extra reads the fields that zip64 and Unix added (APPNOTE 4.5.3; Info-ZIP's extended timestamp).
func (e *zipped) extra(b []byte) error {
	le := binary.LittleEndian
	for len(b) >= 4 {
		id, n := le.Uint16(b), int(le.Uint16(b[2:]))
		if b = b[4:]; n > len(b) {
			return fmt.Errorf("entry %.300q: an extra field longer than all of them", e.name)
		}
		field := b[:n]
		b = b[n:]
		switch id {
		case 0x0001:
			for _, v := range []*uint64{&e.unpacked, &e.packed, &e.offset} {
				if *v != math.MaxUint32 {
					continue
				}
				if len(field) < 8 {
					return fmt.Errorf("entry %.300q: a zip64 field that is too short", e.name)
				}
				*v, field = le.Uint64(field), field[8:]
			}
		case 0x5455:
			if len(field) >= 5 && field[0]&1 != 0 {
				e.modified = time.Unix(int64(int32(le.Uint32(field[1:]))), 0)
			}
		}
	}
	return nil
}

// dosTime takes the local time that it is for UTC.
func dosTime(date, tm uint16) time.Time {
	return time.Date(1980+int(date>>9), time.Month(date>>5&15), int(date&31), int(tm>>11), int(tm>>5&63), int(tm&31)*2, 0, time.UTC)
}

const stored, deflated = 0, 8

func (z *unzipper) unpack(e *zipped) error {
	const encrypted = 1 | 1<<6 | 1<<13
	t := z.t
	switch {
	case e.flags&encrypted != 0:
		return fmt.Errorf("%w: it is encrypted, as only this format does it; encrypt the archive as a whole", ErrUnsafe)
	case strings.Contains(e.name, `\`):
		return fmt.Errorf("%w: a backslash in a name", ErrUnsafe)
	case e.method != stored && e.method != deflated:
		return fmt.Errorf("%w: method %d; stored and deflated entries are unpacked", ErrFormat, e.method)
	case e.unpacked > uint64(t.lim.Bytes-z.total):
		return fmt.Errorf("%w: the files have more than %d bytes", ErrTooBig, t.lim.Bytes)
	}
	if err := t.enter(); err != nil {
		return err
	}
	if !z.said.add(t.hash(path.Clean("/" + e.name))) {
		return fmt.Errorf("%w: the archive has it twice", ErrUnsafe)
	}
	z.total += int64(e.unpacked)
	if err := t.proportionate(z.total, z.size); err != nil {
		return err
	}
	src, err := z.open(e)
	if err != nil {
		return err
	}
	h := &tar.Header{Name: e.name, Size: int64(e.unpacked), Mode: e.mode(), ModTime: e.modified}
	if h.Typeflag, err = e.kind(); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		if h.Size > int64(t.lim.Name) {
			return fmt.Errorf("%w: symbolic link to a name of %d bytes", ErrTooBig, h.Size)
		}
		to := make([]byte, h.Size)
		if _, err := io.ReadFull(src, to); err != nil {
			return fmt.Errorf("%w: zip: %w", ErrFormat, err)
		}
		h.Linkname = string(to)
	}
	if err := t.put(h, src, false); err != nil {
		return err
	}
	// The end is where the sum is known to be right, and no file has been handed out before Zip returns.
	if n, err := src.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return fmt.Errorf("%w: zip: it has more than its %d bytes: %w", ErrFormat, e.unpacked, err)
	}
	return nil
}

// open finds an entry's data (APPNOTE 4.3.7).
func (z *unzipper) open(e *zipped) (*summed, error) {
	var h [30]byte
	bad := func(what string) error { return fmt.Errorf("%w: zip: %s", ErrFormat, what) }
	taken := len(h) + len(e.name)
	if z.left -= int64(taken); e.packed > uint64(max(z.left, 0)) || e.offset > uint64(z.start-int64(taken)) {
		return nil, fmt.Errorf("%w: the entries have more data than the archive", ErrUnsafe)
	}
	z.left -= int64(e.packed)
	b := make([]byte, taken)
	if _, err := io.ReadFull(io.NewSectionReader(z.r, int64(e.offset), int64(taken)), b); err != nil {
		return nil, bad(err.Error())
	}
	le := binary.LittleEndian
	if !bytes.HasPrefix(b, []byte("PK\x03\x04")) || int(le.Uint16(b[26:])) != len(e.name) || string(b[30:]) != e.name || le.Uint16(b[8:]) != e.method {
		return nil, fmt.Errorf("%w: the archive's data and its directory say different things of it", ErrUnsafe)
	}
	begin := int64(e.offset) + int64(taken) + int64(le.Uint16(b[28:]))
	if begin > z.start || e.packed > uint64(z.start-begin) {
		return nil, bad("its data reach into the directory")
	}
	z.data.Reset(io.NewSectionReader(z.r, begin, int64(e.packed)))
	s := &summed{r: z.data, e: e, sum: crc32.NewIEEE()}
	if e.method == deflated {
		if z.inflate == nil {
			z.inflate = flate.NewReader(z.data)
		} else if err := z.inflate.(flate.Resetter).Reset(z.data, nil); err != nil {
			return nil, err
		}
		s.r = z.inflate
	}
	return s, nil
}

// summed is an entry's content; its end is reached only if length and CRC-32 are right.
type summed struct {
	r   io.Reader
	e   *zipped
	sum interface {
		io.Writer
		Sum32() uint32
	}
	n uint64
}

func (s *summed) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.sum.Write(b[:n])
	s.n += uint64(n)
	switch {
	case s.n > s.e.unpacked:
		return 0, fmt.Errorf("%w: zip: it has more than its %d bytes", ErrFormat, s.e.unpacked)
	case err == io.EOF && (s.n != s.e.unpacked || s.sum.Sum32() != s.e.crc):
		return 0, fmt.Errorf("%w: zip: its %d bytes of %d have CRC-32 %08x, want %08x", ErrFormat, s.n, s.e.unpacked, s.sum.Sum32(), s.e.crc)
	case err != nil && err != io.EOF:
		return 0, fmt.Errorf("%w: zip: %w", ErrFormat, err)
	}
	return n, err
}

// unix says whether attrs have a Unix mode: the archive was made on Unix or macOS.
func (e *zipped) unix() bool { return e.by == 3 || e.by == 19 }

func (e *zipped) kind() (byte, error) {
	if strings.HasSuffix(e.name, "/") {
		if e.unpacked != 0 {
			return 0, fmt.Errorf("%w: a directory with content", ErrFormat)
		}
		return tar.TypeDir, nil
	}
	if e.unix() {
		switch m := e.attrs >> 16 & unix.S_IFMT; m {
		case 0, unix.S_IFREG:
		case unix.S_IFLNK:
			return tar.TypeSymlink, nil
		default:
			return 0, fmt.Errorf("%w: mode %o; device nodes, FIFOs and sockets are not unpacked, and the name of a directory ends in a slash", ErrUnsafe, m)
		}
	}
	return tar.TypeReg, nil
}

// mode is the permissions. Those who have no idea of them say none.
func (e *zipped) mode() int64 {
	if m := int64(e.attrs >> 16 & 0o777); e.unix() && m != 0 {
		return m
	}
	if strings.HasSuffix(e.name, "/") {
		return 0o755
	}
	return 0o644
}

// staysInside says whether a link in the directory at, a path without links, leads to a place in the tree: it is relative, and climbs only
// at its start and at most to the root. What it meets behind that are links that do as well.
func staysInside(at, target string) bool {
	if path.IsAbs(target) {
		return false
	}
	depth := 0
	if at != "." {
		depth = strings.Count(at, "/") + 1
	}
	climbing := true
	for p := range strings.SplitSeq(target, "/") {
		switch {
		case p == "" || p == ".":
		case p != "..":
			climbing = false
		case !climbing || depth == 0:
			return false
		default:
			depth--
		}
	}
	return true
}
