package disk

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// A File is one file of a FAT file system. Name is a path with slashes whose parts are of DOS's form: up to eight and
// three of A-Z, 0-9, '-' and '_'.
type File struct {
	Name string
	Data []byte
}

// FAT32 has at least this many clusters, which is what tells it from FAT16 ("Microsoft Extensible Firmware Initiative
// FAT32 File System Specification", 1.03, p. 14). Some stay free, since readers count differently near the limit.
const minClusters = 65525 + 16

// The layout, in sectors. A cluster is one sector, as in every FAT32 under 260 MiB.
const (
	fatReserved = 32
	fatBackup   = 6 // second copy of the boot sector
	fatLabel    = "AMPOULE    "
	fatFirst    = gptFirst // sectors of the disk before the file system
)

// FAT32 makes a file system of whole MiB, no larger than it has to be, that holds files and their folders, all dated
// date (of UTC). UEFI wants this kind for a system partition (UEFI 2.10, 13.3). id gives the serial number.
func FAT32(files []File, id [32]byte, date time.Time) (*Image, error) {
	root := &folder{}
	for _, f := range files {
		if err := root.add(strings.Split(f.Name, "/"), f.Data); err != nil {
			return nil, fmt.Errorf("FAT file system: %s: %w", f.Name, err)
		}
	}
	next := root.place(2, 0)
	clusters := max(int64(next-2), minClusters)
	fatSectors := up((clusters+2)*4, Sector) / Sector
	i := &Image{Size: up((fatReserved+2*fatSectors+clusters)*Sector, MiB)}
	// What rounding up gives belongs to the file system too, so that its size and its partition's agree.
	for fatSectors*Sector/4-2 < i.Size/Sector-fatReserved-2*fatSectors {
		fatSectors++
	}
	clusters = i.Size/Sector - fatReserved - 2*fatSectors
	if clusters > 1<<22 {
		return nil, fmt.Errorf("FAT file system: %d MiB, more than a system partition has", i.Size/MiB)
	}
	boot, info := fatBoot(uint32(i.Size/Sector), uint32(fatSectors), id), fatInfo(uint32(clusters)-(next-2), next)
	i.put(0, append(boot, info...))
	i.put(fatBackup*Sector, append(slices.Clone(boot), info...))
	table := root.chain(make([]byte, 0, next*4))
	le.PutUint32(table[:4], 0x0ffffff8) // of a fixed disk
	for n := range int64(2) {
		i.put((fatReserved+n*fatSectors)*Sector, table)
	}
	at := (fatReserved + 2*fatSectors) * Sector
	root.write(fatTime(date), fatLabel, func(first uint32, data []byte) { i.put(at+int64(first-2)*Sector, data) })
	return i, nil
}

func fatBoot(sectors, fatSectors uint32, id [32]byte) []byte {
	b := make([]byte, Sector)
	copy(b, "\xeb\x58\x90MSWIN4.1")
	le.PutUint16(b[11:], Sector)
	b[13] = 1 // sector a cluster
	le.PutUint16(b[14:], fatReserved)
	b[16] = 2    // FATs
	b[21] = 0xf8 // fixed disk
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255) // geometry, for BIOSes
	le.PutUint32(b[28:], fatFirst)
	le.PutUint32(b[32:], sectors)
	le.PutUint32(b[36:], fatSectors)
	le.PutUint32(b[44:], 2) // the root folder's cluster
	le.PutUint16(b[48:], 1) // the info sector
	le.PutUint16(b[50:], fatBackup)
	b[64], b[66] = 0x80, 0x29
	copy(b[67:71], id[:])
	copy(b[71:], fatLabel+"FAT32   ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

func fatInfo(free, next uint32) []byte {
	b := make([]byte, Sector)
	copy(b, "RRaA")
	copy(b[484:], "rrAa")
	le.PutUint32(b[488:], free)
	le.PutUint32(b[492:], next)
	b[510], b[511] = 0x55, 0xaa
	return b
}

// fatTime is a time as directory entries have it: date, then time of day, of two seconds.
func fatTime(t time.Time) [2]uint16 {
	t = t.UTC()
	return [2]uint16{
		uint16(max(t.Year()-1980, 0)<<9 | int(t.Month())<<5 | t.Day()),
		uint16(t.Hour()<<11 | t.Minute()<<5 | t.Second()/2),
	}
}

// A folder's entries are files, whose data is not nil, and folders. Their order is that of first mention.
type folder struct {
	name    [11]byte
	data    []byte
	entries []*folder
	isFile  bool
	first   uint32 // cluster; 0 for an empty file
	parent  uint32
}

func (f *folder) add(parts []string, data []byte) error {
	name, err := fatName(parts[0])
	if err != nil {
		return err
	}
	at := slices.IndexFunc(f.entries, func(e *folder) bool { return e.name == name })
	if len(parts) == 1 {
		if at >= 0 {
			return fmt.Errorf("%s is there twice", parts[0])
		}
		f.entries = append(f.entries, &folder{name: name, data: data, isFile: true})
		return nil
	}
	if at < 0 {
		f.entries = append(f.entries, &folder{name: name})
		at = len(f.entries) - 1
	}
	if f.entries[at].isFile {
		return fmt.Errorf("%s is a file", parts[0])
	}
	return f.entries[at].add(parts[1:], data)
}

func fatName(s string) (n [11]byte, err error) {
	copy(n[:], "           ")
	ext := path.Ext(s)
	base, ext := strings.TrimSuffix(s, ext), strings.TrimPrefix(ext, ".")
	const chars = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
	if base == "" || len(base) > 8 || len(ext) > 3 || strings.Trim(base+ext, chars) != "" {
		return n, fmt.Errorf("%q is no name of DOS's form", s)
	}
	copy(n[:8], base)
	copy(n[8:], ext)
	return n, nil
}

// bytes is how much a file or a folder takes. A folder other than the root begins with "." and "..", the root with the label.
func (f *folder) bytes() int {
	switch {
	case f.isFile:
		return len(f.data)
	case f.parent == 0 && f.name == [11]byte{}:
		return 32 * (1 + len(f.entries))
	}
	return 32 * (2 + len(f.entries))
}

// place gives clusters to f and all below, each in one piece, and returns the next free one.
func (f *folder) place(next, parent uint32) uint32 {
	f.parent = parent
	if n := up(int64(f.bytes()), Sector) / Sector; n > 0 {
		f.first = next
		next += uint32(n)
	}
	for _, e := range f.entries {
		next = e.place(next, f.first)
	}
	return next
}

// chain appends to the table the entries of f and all below; the first two are those of no cluster.
func (f *folder) chain(table []byte) []byte {
	const last = 0x0fffffff
	if len(table) == 0 {
		table = le.AppendUint32(le.AppendUint32(table, last), last)
	}
	n := uint32(up(int64(f.bytes()), Sector) / Sector)
	for c := range n {
		v := f.first + c + 1
		if c == n-1 {
			v = last
		}
		table = le.AppendUint32(table, v)
	}
	for _, e := range f.entries {
		table = e.chain(table)
	}
	return table
}

// write hands out the content of f and of all below.
func (f *folder) write(date [2]uint16, label string, out func(first uint32, data []byte)) {
	if f.isFile {
		out(f.first, f.data)
		return
	}
	var b []byte
	entry := func(name string, attribute byte, first uint32, size int) {
		e := make([]byte, 32)
		copy(e, name)
		e[11] = attribute
		le.PutUint16(e[14:], date[1])
		le.PutUint16(e[16:], date[0])
		le.PutUint16(e[18:], date[0])
		le.PutUint16(e[20:], uint16(first>>16))
		le.PutUint16(e[22:], date[1])
		le.PutUint16(e[24:], date[0])
		le.PutUint16(e[26:], uint16(first))
		le.PutUint32(e[28:], uint32(size))
		b = append(b, e...)
	}
	const volume, directory, archive = 0x08, 0x10, 0x20
	if label != "" {
		entry(label, volume, 0, 0)
	} else {
		parent := f.parent
		if parent == 2 {
			parent = 0 // the root is written so
		}
		entry(".          ", directory, f.first, 0)
		entry("..         ", directory, parent, 0)
	}
	for _, e := range f.entries {
		if e.isFile {
			entry(string(e.name[:]), archive, e.first, len(e.data))
		} else {
			entry(string(e.name[:]), directory, e.first, 0)
		}
	}
	out(f.first, b)
	for _, e := range f.entries {
		e.write(date, "", out)
	}
}
