package evidence

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// fields reads the members of one object and of those inside it; the first error of all of them is kept.
type fields struct {
	path string
	m    map[string]json.RawMessage
	err  *error
}

func open(path string, raw []byte, required, optional []string) *fields {
	f := &fields{path: path, err: new(error)}
	var err error
	f.m, err = ObjectOf(raw, required, optional)
	f.fail("", err)
	return f
}

func (f *fields) failure() error { return *f.err }

func (f *fields) has(name string) bool { return f.m[name] != nil }

func (f *fields) fail(name string, err error) {
	if err == nil || *f.err != nil {
		return
	}
	if p := f.path + name; p != "" {
		err = fmt.Errorf("%s: %w", p, err)
	}
	*f.err = err
}

func (f *fields) object(name string, required, optional []string) *fields {
	sub := &fields{path: f.path + name + ".", err: f.err}
	if *f.err == nil {
		var err error
		sub.m, err = ObjectOf(f.m[name], required, optional)
		f.fail(name, err)
	}
	return sub
}

// number reads a whole number into *uint8, *uint32 or *uint64.
func (f *fields) number(name string, dst any) {
	if *f.err == nil {
		f.fail(name, json.Unmarshal(f.m[name], dst))
	}
}

// octets reads an array of numbers as long as dst.
func (f *fields) octets(name string, dst []byte) {
	b := f.bytes(name)
	if *f.err == nil && len(b) != len(dst) {
		f.fail(name, fmt.Errorf("%d bytes, want %d", len(b), len(dst)))
	}
	copy(dst, b)
}

// bytes reads an array of numbers of any length.
func (f *fields) bytes(name string) []byte {
	if *f.err != nil {
		return nil
	}
	b, err := numbers(f.m[name])
	f.fail(name, err)
	return b
}

// text reads a string of bytes in the form that decode knows.
func (f *fields) text(name string, decode func(string) ([]byte, error)) []byte {
	if *f.err != nil {
		return nil
	}
	var s string
	err := json.Unmarshal(f.m[name], &s)
	var b []byte
	if err == nil {
		b, err = decode(s)
	}
	f.fail(name, err)
	return b
}

// pcrs reads 24 values of 32 bytes.
func (f *fields) pcrs(name string, dst *[24][32]byte, decode func(json.RawMessage) ([]byte, error)) {
	if *f.err != nil {
		return
	}
	var list []json.RawMessage
	f.fail(name, json.Unmarshal(f.m[name], &list))
	if *f.err == nil && len(list) != len(dst) {
		f.fail(name, fmt.Errorf("%d values, want %d", len(list), len(dst)))
		return
	}
	for i, raw := range list {
		b, err := decode(raw)
		if err == nil && len(b) != len(dst[i]) {
			err = fmt.Errorf("%d bytes, want %d", len(b), len(dst[i]))
		}
		if err != nil {
			f.fail(fmt.Sprintf("%s[%d]", name, i), err)
			return
		}
		dst[i] = [32]byte(b)
	}
}

func (f *fields) onlyFrom(version, first uint32, names ...string) {
	for _, name := range names {
		if has := f.has(name); *f.err == nil && has != (version >= first) {
			f.fail(name, fmt.Errorf("present is %t in a report of version %d", has, version))
		}
	}
}

func (f *fields) tcb(name string, t *TCB, turin bool) {
	o := f.object(name, []string{"bootloader", "tee", "snp", "microcode"}, []string{"fmc"})
	if *f.err == nil && o.has("fmc") != turin {
		f.fail(name+".fmc", fmt.Errorf("present is %t, on Turin is %t", o.has("fmc"), turin))
	}
	if turin {
		o.number("fmc", &t.FMC)
	}
	o.number("bootloader", &t.Bootloader)
	o.number("tee", &t.TEE)
	o.number("snp", &t.SNP)
	o.number("microcode", &t.Microcode)
}

func (f *fields) firmware(name string, v *Firmware) {
	o := f.object(name, []string{"major", "minor", "build"}, nil)
	o.number("major", &v.Major)
	o.number("minor", &v.Minor)
	o.number("build", &v.Build)
}

// certs reads the chain. Types without a GUID of their own ({"OTHER":…}, Empty) are dropped, as ParseCerts does.
func (f *fields) certs(name string) (certs []Cert) {
	if *f.err != nil || !f.has(name) {
		return nil
	}
	var list []json.RawMessage
	f.fail(name, json.Unmarshal(f.m[name], &list))
	if len(list) > maxCertEntries || *f.err == nil && len(list) == 0 {
		f.fail(name, fmt.Errorf("%d certificates, want 1 to %d, or null", len(list), maxCertEntries))
		return nil
	}
	for i, raw := range list {
		where := fmt.Sprintf("%s[%d]", name, i)
		m, err := ObjectOf(raw, []string{"cert_type", "data"}, nil)
		if err != nil {
			f.fail(where, err)
			return nil
		}
		var kind string
		if json.Unmarshal(m["cert_type"], &kind) != nil || certGUIDs[kind] == [16]byte{} {
			continue
		}
		der, err := numbers(m["data"])
		f.fail(where+".data", err)
		if slices.ContainsFunc(certs, func(c Cert) bool { return c.Type == kind }) {
			f.fail(where, fmt.Errorf("%s twice", kind))
		}
		certs = append(certs, Cert{kind, der})
	}
	return certs
}

// decode64 reads base64 that has one form only. encoding/base64 skips line breaks even when it is strict.
func decode64(enc *base64.Encoding, s string) ([]byte, error) {
	if i := strings.IndexAny(s, "\r\n"); i >= 0 {
		return nil, base64.CorruptInputError(i)
	}
	return enc.Strict().DecodeString(s)
}

// numbers reads an array of numbers from 0 to 255. encoding/json would also take base64, and null for 0.
func numbers(raw json.RawMessage) ([]byte, error) {
	if bytes.Equal(raw, []byte("null")) {
		return nil, errors.New("is null, want an array of numbers")
	}
	var list []*uint8
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	b := make([]byte, len(list))
	for i, v := range list {
		if v == nil {
			return nil, fmt.Errorf("element %d is null", i)
		}
		b[i] = *v
	}
	return b, nil
}
