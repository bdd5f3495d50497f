package evidence

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCerts(t *testing.T) {
	entry := func(guid [16]byte, off, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32(guid[:], off)
		return binary.LittleEndian.AppendUint32(b, size)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	end, vcek, ark := make([]byte, 24), certGUIDs["VCEK"], certGUIDs["ARK"]
	odd := [16]byte{1}
	many := bytes.Repeat(entry(odd, 0, 0), maxCertEntries+1)
	for name, c := range map[string]struct {
		table []byte
		want  []Cert
		err   string
	}{
		"empty":                             {nil, nil, ""},
		"a page of zeros":                   {make([]byte, 4096), nil, ""},
		"one":                               {join(entry(vcek, 48, 3), end, []byte("abc")), []Cert{{"VCEK", []byte("abc")}}, ""},
		"one, padded to a page":             {join(entry(vcek, 48, 3), end, []byte("abc"), make([]byte, 4000)), []Cert{{"VCEK", []byte("abc")}}, ""},
		"an unknown GUID, whatever it says": {join(entry(odd, 1<<31, 1<<31), entry(vcek, 72, 1), end, []byte("a")), []Cert{{"VCEK", []byte("a")}}, ""},
		"a zero GUID that is not the end":   {join(entry([16]byte{}, 72, 1), entry(vcek, 72, 1), end, []byte("a")), []Cert{{"VCEK", []byte("a")}}, ""},
		"an empty entry":                    {join(entry(vcek, 48, 0), end), nil, ""},
		"no end":                            {entry(vcek, 24, 0), nil, "terminating"},
		"cut in a header":                   {make([]byte, 23), nil, "terminating"},
		"outside":                           {join(entry(vcek, 48, 4), end, []byte("abc")), nil, "in 51 bytes"},
		"outside by overflow":               {join(entry(vcek, 1<<32-1, 2), end), nil, "in 48 bytes"},
		"inside the headers":                {join(entry(vcek, 0, 3), end), nil, "lies at 0"},
		"the same twice":                    {join(entry(ark, 72, 1), entry(ark, 72, 1), end, []byte("a")), nil, "twice"},
		"too many":                          {join(many, end), nil, "more than"},
		"too large":                         {make([]byte, maxCertTable+1), nil, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCerts(c.table)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v, want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzParseCerts(f *testing.F) {
	table, err := MarshalCerts([]Cert{{"VCEK", []byte("a")}, {"ARK", []byte("b")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(table)
	f.Fuzz(func(t *testing.T, b []byte) {
		certs, err := ParseCerts(b)
		if err != nil {
			return
		}
		again, err := MarshalCerts(certs)
		if err != nil {
			return // overlapping entries can add up to more than a table
		}
		if got, err := ParseCerts(again); err != nil || len(got) != len(certs) {
			t.Errorf("%d certificates of %d: %v", len(got), len(certs), err)
		}
	})
}
