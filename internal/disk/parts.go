package disk

import (
	"bytes"
	"fmt"
	"strings"
)

// A Part is a piece of a disk with a name, for telling where two disks differ.
type Part struct {
	Name string
	Data []byte
}

// Parts names the pieces of a disk as GPT and FAT32 make them: tables, file system, and each file by its path. Of another
// disk it returns nil.
func Parts(b []byte) []Part {
	const fs = gptFirst * Sector
	if len(b) < fs+fatReserved*Sector || string(b[Sector:Sector+8]) != "EFI PART" || string(b[fs+82:fs+90]) != "FAT32   " || le.Uint16(b[fs+11:]) != Sector || b[fs+13] != 1 {
		return nil
	}
	fat := fs + int64(le.Uint16(b[fs+14:]))*Sector
	size := int64(le.Uint32(b[fs+36:])) * Sector
	data := fat + 2*size
	end := fs + int64(le.Uint32(b[fs+32:]))*Sector
	if size <= 0 || data >= end || end > int64(len(b)) {
		return nil
	}
	parts := []Part{
		{"protective MBR", b[:Sector]},
		{"partition table", b[Sector : (2+gptTable)*Sector]},
		{"file system: boot sectors", b[fs:fat]},
		{"file system: first FAT", b[fat : fat+size]},
		{"file system: second FAT", b[fat+size : data]},
	}
	area := b[data:end]
	seen := map[uint32]bool{}
	var walk func(first uint32, path string)
	walk = func(first uint32, path string) {
		at := int64(first-2) * Sector
		if first < 2 || seen[first] || at >= int64(len(area)) || len(path) > 1024 {
			return
		}
		seen[first] = true
		dir := area[at:]
		n := 0
		for n+32 <= len(dir) && dir[n] != 0 {
			n += 32
		}
		parts = append(parts, Part{"file system: folder " + path, dir[:n]})
		for e := range n / 32 {
			entry := dir[32*e:][:32]
			name := strings.TrimRight(string(entry[:8]), " ")
			if ext := strings.TrimRight(string(entry[8:11]), " "); ext != "" {
				name += "." + ext
			}
			first := uint32(le.Uint16(entry[20:]))<<16 | uint32(le.Uint16(entry[26:]))
			size, at := int64(le.Uint32(entry[28:])), int64(first-2)*Sector
			switch {
			case entry[11]&0x08 != 0 || entry[0] == '.': // the label, this folder and the one above
			case entry[11]&0x10 != 0:
				walk(first, path+name+"/")
			case first >= 2 && at+size <= int64(len(area)):
				parts = append(parts, Part{path + name, area[at:][:size]})
			}
		}
	}
	walk(le.Uint32(b[fs+44:]), "/")
	if table := b[end:]; bytes.HasPrefix(b[len(b)-Sector:], []byte("EFI PART")) {
		parts = append(parts, Part{"second partition table", table})
	} else {
		parts = append(parts, Part{fmt.Sprintf("what follows the partition at byte %d", end), table})
	}
	return parts
}
