// Package disk makes disk images for machines that boot by UEFI: a GPT with one EFI system partition, in the file formats
// that clouds and hypervisors take. Nothing is mounted, no privilege is needed, and equal inputs give equal bytes.
//
//	esp, err := disk.FAT32([]disk.File{{Name: "EFI/BOOT/BOOTX64.EFI", Data: uki}}, id, date)
//	image, err := disk.GPT(esp, 0, id)
//	err = image.WriteFile("disk.raw")
package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Units of bytes.
const (
	Sector = 512
	MiB    = 1 << 20
	GiB    = 1 << 30
)

// An Image is what a disk or a partition holds: extents in ascending order that do not overlap, and zeros elsewhere.
// Offsets and lengths are whole sectors.
type Image struct {
	Size    int64
	extents []extent
}

type extent struct {
	offset int64
	data   []byte
}

func (e extent) end() int64 { return e.offset + int64(len(e.data)) }

// put adds data at an offset behind all that is there, filled up to a whole sector. Neighbours become one.
func (i *Image) put(offset int64, data []byte) {
	if len(data) == 0 {
		return
	}
	n := len(i.extents)
	if n > 0 && i.extents[n-1].end() > offset || offset%Sector != 0 || offset+int64(len(data)) > i.Size {
		panic(fmt.Sprintf("disk: %d bytes at %d have no place on a disk of %d", len(data), offset, i.Size)) // a layout of ours is wrong
	}
	data = append(data[:len(data):len(data)], make([]byte, -len(data)&(Sector-1))...)
	if n > 0 && i.extents[n-1].end() == offset {
		i.extents[n-1].data = append(i.extents[n-1].data, data...)
		return
	}
	i.extents = append(i.extents, extent{offset, data})
}

// ReadAt reads as io.ReaderAt has it.
func (i *Image) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 {
		return 0, errors.New("disk: read before the beginning")
	}
	if at >= i.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), i.Size-at))
	clear(p[:n])
	for _, e := range i.extents {
		if from, to := max(e.offset, at), min(e.end(), at+int64(n)); from < to {
			copy(p[from-at:], e.data[from-e.offset:to-e.offset])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteFile writes the image to a file with holes.
func (i *Image) WriteFile(path string) error { return i.writeFile(path, nil) }

// writeFile writes the image and what follows its end.
func (i *Image) writeFile(path string, trailer []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(i.Size)
	for _, e := range i.extents {
		if err == nil {
			_, err = f.WriteAt(e.data, e.offset)
		}
	}
	if err == nil {
		_, err = f.WriteAt(trailer, i.Size)
	}
	return errors.Join(err, f.Close())
}

func up(n, to int64) int64 { return (n + to - 1) / to * to }

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)
