package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestDMRequest: the bytes are those of include/uapi/linux/dm-ioctl.h.
func TestDMRequest(t *testing.T) {
	b, err := dmRequest("swap", dmSecureDataFlag, &dmTarget{"crypt", 64, []byte("a b c")})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.NativeEndian
	for name, c := range map[string]struct{ got, want uint64 }{
		"size is a multiple of 8":    {uint64(len(b)), 312 + 40 + 8},
		"version":                    {uint64(le.Uint32(b)), 4},
		"data_size":                  {uint64(le.Uint32(b[12:])), uint64(len(b))},
		"data_start":                 {uint64(le.Uint32(b[16:])), 312},
		"target_count":               {uint64(le.Uint32(b[20:])), 1},
		"flags":                      {uint64(le.Uint32(b[28:])), 1 << 15},
		"target: sector_start":       {le.Uint64(b[312:]), 0},
		"target: length":             {le.Uint64(b[320:]), 64},
		"target: next":               {uint64(le.Uint32(b[332:])), 48},
		"target: NUL behind its end": {uint64(b[357]), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", name, c.got, c.want)
		}
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{"name": {b[48:176], "swap"}, "target_type": {b[336:352], "crypt"}, "parameters": {b[352:], "a b c"}} {
		if got := string(bytes.TrimRight(c.got, "\x00")); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	bare, err := dmRequest("x", 0, nil)
	if err != nil || len(bare) != 312 || le.Uint32(bare[20:]) != 0 {
		t.Errorf("without a target: %d bytes, %v", len(bare), err)
	}
	for _, name := range []string{"", strings.Repeat("x", 128)} {
		if _, err := dmRequest(name, 0, nil); err == nil {
			t.Errorf("a name of %d bytes is taken", len(name))
		}
	}
}

// TestDeviceMapper makes a device and takes it away, on a machine whose kernel has the device mapper.
func TestDeviceMapper(t *testing.T) {
	m, err := openMapper()
	if err != nil {
		t.Skip(err)
	}
	defer m.close()
	const name = "ampoule-test"
	params := []byte{}
	dev, err := m.create(name, dmTarget{"zero", 2048, params})
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if dev == 0 {
		t.Error("the device has no number")
	}
	if _, err := m.create(name, dmTarget{"zero", 2048, params}); err == nil {
		t.Error("a name is taken twice")
	}
	if err := m.remove(name); err != nil {
		t.Fatal(err)
	}
	if _, err := m.create(name, dmTarget{"no-such-target", 2048, params}); err == nil || !strings.Contains(err.Error(), "is it in the kernel?") {
		t.Errorf("a target that the kernel has not: %v", err)
	}
	if err := m.remove(name); err == nil {
		t.Error("a device that could not be made is still there")
	}
}
