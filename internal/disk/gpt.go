package disk

import (
	"fmt"
	"hash/crc32"
	"unicode/utf16"
)

// The layout of the table, in sectors (UEFI 2.10, 5.3).
const (
	gptEntries = 128 // of 128 bytes
	gptTable   = gptEntries * 128 / Sector
	gptFirst   = MiB / Sector // of the partition: aligned for any disk
)

// espType is C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it stands in a table, its first three fields in little endian.
var espType = [16]byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// GPT makes a disk with esp as its only partition, a system partition. size is that of the disk, in bytes; 0 for the
// least in whole MiB. The two GUIDs come from id.
func GPT(esp *Image, size int64, id [32]byte) (*Image, error) {
	end := gptFirst*Sector + esp.Size
	least := up(end+(1+gptTable)*Sector, MiB)
	if size == 0 {
		size = least
	}
	if size < least || size%Sector != 0 {
		return nil, fmt.Errorf("disk of %d bytes: want whole sectors, at least %d", size, least)
	}
	sectors := uint64(size / Sector)

	mbr := make([]byte, Sector) // protective: all of the disk is of type EE
	copy(mbr[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	le.PutUint32(mbr[454:], 1)
	le.PutUint32(mbr[458:], uint32(min(sectors-1, 1<<32-1)))
	mbr[510], mbr[511] = 0x55, 0xaa

	table := make([]byte, gptTable*Sector)
	copy(table, espType[:])
	guid := asGUID(id[16:])
	copy(table[16:], guid[:])
	le.PutUint64(table[32:], gptFirst)
	le.PutUint64(table[40:], uint64(end/Sector-1))
	for n, c := range utf16.Encode([]rune("EFI system partition")) {
		le.PutUint16(table[56+2*n:], c)
	}
	header := func(self, other, entries uint64) []byte {
		h := make([]byte, 92)
		copy(h, "EFI PART\x00\x00\x01\x00")
		le.PutUint32(h[12:], uint32(len(h)))
		le.PutUint64(h[24:], self)
		le.PutUint64(h[32:], other)
		le.PutUint64(h[40:], 2+gptTable)
		le.PutUint64(h[48:], sectors-2-gptTable)
		guid := asGUID(id[:16])
		copy(h[56:], guid[:])
		le.PutUint64(h[72:], entries)
		le.PutUint32(h[80:], gptEntries)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
		return h
	}
	i := &Image{Size: size}
	i.put(0, mbr)
	i.put(Sector, header(1, sectors-1, 2))
	i.put(2*Sector, table[:Sector]) // the rest is zeros
	for _, e := range esp.extents {
		i.put(gptFirst*Sector+e.offset, e.data)
	}
	i.put(size-(1+gptTable)*Sector, table[:Sector])
	i.put(size-Sector, header(sectors-1, 1, sectors-1-gptTable))
	return i, nil
}

// asGUID makes a GUID of 16 bytes, of version 8 (RFC 9562, 5.8: the maker's own), as it stands in a table.
func asGUID(b []byte) (g [16]byte) {
	copy(g[:], b)
	g[7] = g[7]&0x0f | 0x80 // the version is in the third field, which is little endian
	g[8] = g[8]&0x3f | 0x80
	return g
}
