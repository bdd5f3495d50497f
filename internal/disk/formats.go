package disk

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// WriteVHD writes a fixed VHD, which Azure takes: the disk, of whole MiB, and a footer of 512 bytes ("Virtual Hard Disk
// Image Format Specification" 1.0). A disk that is not of whole MiB is an error, for Azure refuses it.
func (i *Image) WriteVHD(path string, id [32]byte, date time.Time) error {
	if i.Size%MiB != 0 {
		return fmt.Errorf("VHD of %d bytes: Azure takes whole MiB only", i.Size)
	}
	return i.writeFile(path, i.vhdFooter(id, date))
}

func (i *Image) vhdFooter(id [32]byte, date time.Time) []byte {
	f := make([]byte, Sector)
	copy(f, "conectix")
	be.PutUint32(f[8:], 2)        // features: the bit that is always set
	be.PutUint32(f[12:], 1<<16)   // version
	be.PutUint64(f[16:], 1<<64-1) // there is no dynamic header
	be.PutUint32(f[24:], uint32(date.Unix()-time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()))
	// Readers know by these whether the sizes below are exact or the geometry is; with qemu-img's mark, Azure and others take the sizes.
	copy(f[28:], "qem2")
	be.PutUint32(f[32:], 5<<16|3)
	copy(f[36:], "Wi2k")
	be.PutUint64(f[40:], uint64(i.Size))
	be.PutUint64(f[48:], uint64(i.Size))
	be.PutUint16(f[56:], 65535) // the geometry of a disk whose size is not that of its geometry
	f[58], f[59] = 16, 255
	be.PutUint32(f[60:], 2) // fixed
	uuid := asGUID(id[:16])
	copy(f[68:], uuid[:])
	var sum uint32
	for _, b := range f {
		sum += uint32(b)
	}
	be.PutUint32(f[64:], ^sum)
	return f
}

// WriteQCOW2 writes a QCOW2 file of version 3 (QEMU, docs/interop/qcow2.rst) in which only what is not zero takes space.
func (i *Image) WriteQCOW2(path string) error {
	const (
		bits    = 16
		cluster = 1 << bits
		each    = cluster / 8 // entries of a table
		copied  = 1 << 63     // there is no snapshot that shares it
	)
	used := map[int64]bool{}
	for _, e := range i.extents {
		for c := e.offset / cluster; c <= (e.end()-1)/cluster; c++ {
			used[c] = true
		}
	}
	clusters := up(i.Size, cluster) / cluster
	tables := up(clusters, each) / each
	total := 4 + tables + int64(len(used)) // header, table and block of counts, first level
	if total > cluster/2 || tables > each {
		return errors.New("QCOW2: more than 2 GiB of data")
	}
	out := make([]byte, (4+tables)*cluster, total*cluster)
	copy(out, "QFI\xfb")
	be.PutUint32(out[4:], 3)
	be.PutUint32(out[20:], bits)
	be.PutUint64(out[24:], uint64(i.Size))
	be.PutUint32(out[36:], uint32(tables))
	be.PutUint64(out[40:], 3*cluster) // first level
	be.PutUint64(out[48:], 1*cluster) // table of counts
	be.PutUint32(out[56:], 1)         // cluster of it
	be.PutUint32(out[96:], 4)         // counts of 16 bits
	be.PutUint32(out[100:], 112)      // length of this header
	be.PutUint64(out[cluster:], 2*cluster)
	for c := range total {
		be.PutUint16(out[2*cluster+2*c:], 1)
	}
	for t := range tables {
		be.PutUint64(out[3*cluster+8*t:], uint64((4+t)*cluster)|copied)
	}
	for c := range clusters {
		if !used[c] {
			continue
		}
		be.PutUint64(out[4*cluster+8*c:], uint64(len(out))|copied) // the tables of the second level are neighbours
		buf := make([]byte, cluster)
		if _, err := i.ReadAt(buf, c*cluster); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		out = append(out, buf...)
	}
	return os.WriteFile(path, out, 0o644)
}

// WriteGCE writes what Google's images are imported from: a gzipped tar, in GNU's old format with holes, of one file with
// the name disk.raw. A disk that is not of whole GiB is an error, for Google refuses it.
func (i *Image) WriteGCE(path string, date time.Time) error {
	if i.Size%GiB != 0 {
		return fmt.Errorf("disk.raw of %d bytes: Google takes whole GiB only", i.Size)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err == nil {
		err = i.writeSparseTar(z, "disk.raw", date)
	}
	if err == nil {
		err = z.Close()
	}
	return errors.Join(err, f.Close())
}

// writeSparseTar writes a file as GNU tar does with --sparse --format=gnu ("GNU tar", Basic Tar Format and Storing Sparse
// Files). archive/tar writes no sparse files.
func (i *Image) writeSparseTar(w io.Writer, name string, date time.Time) error {
	var stored int64
	type piece struct{ offset, size int64 }
	var pieces []piece
	for _, e := range i.extents {
		pieces = append(pieces, piece{e.offset, int64(len(e.data))})
		stored += int64(len(e.data))
	}
	if n := len(i.extents); n == 0 || i.extents[n-1].end() < i.Size {
		pieces = append(pieces, piece{i.Size, 0}) // ends in a hole
	}
	octal := func(b []byte, v int64) { copy(b, fmt.Sprintf("%0*o", len(b)-1, v)) }
	fill := func(b []byte, room int) { // b: room pieces, and whether more follow
		n := min(room, len(pieces))
		for k, p := range pieces[:n] {
			octal(b[24*k:24*k+12], p.offset)
			octal(b[24*k+12:24*k+24], p.size)
		}
		if pieces = pieces[n:]; len(pieces) > 0 {
			b[24*room] = 1
		}
	}
	h := make([]byte, Sector)
	copy(h[:100], name)
	octal(h[100:108], 0o644)
	octal(h[108:116], 0)
	octal(h[116:124], 0)
	octal(h[124:136], stored)
	octal(h[136:148], date.Unix())
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	fill(h[386:483], 4)
	octal(h[483:495], i.Size)
	copy(h[148:], "        ")
	var sum int64
	for _, b := range h {
		sum += int64(b)
	}
	octal(h[148:155], sum)
	h[154] = 0
	out := h
	for len(pieces) > 0 {
		more := make([]byte, Sector)
		fill(more, 21)
		out = append(out, more...)
	}
	if _, err := w.Write(out); err != nil {
		return err
	}
	for _, e := range i.extents {
		if _, err := w.Write(e.data); err != nil {
			return err
		}
	}
	// Two blocks of zeros end the archive, which is filled up to a whole record.
	size := int64(len(out)) + stored
	_, err := w.Write(make([]byte, up(size+2*Sector, 20*Sector)-size))
	return err
}
