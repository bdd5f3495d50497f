package evidence

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// A member40 is a member of the report as version 4.0 of the sev crate wrote it, which Trustee v0.12 and v0.13 know
// (wire/SPEC.md §2.1). They follow each other there as in the report and leave no byte out, reserved ones included, so that
// reports of later versions and of Turin pass through unharmed although that crate has no name for their fields.
type member40 struct {
	name string
	size int  // bytes in the report
	num  bool // a number of 1, 4 or 8 bytes, little-endian; otherwise an array of numbers, or an object
	of   []member40
}

var (
	tcb40 = []member40{
		{"bootloader", 1, true, nil}, {"tee", 1, true, nil}, {"_reserved", 4, false, nil},
		{"snp", 1, true, nil}, {"microcode", 1, true, nil},
	}
	signature40 = []member40{{"r", 72, false, nil}, {"s", 72, false, nil}, {"_reserved", 368, false, nil}}
	report40    = []member40{
		{"version", 4, true, nil}, {"guest_svn", 4, true, nil}, {"policy", 8, true, nil},
		{"family_id", 16, false, nil}, {"image_id", 16, false, nil}, {"vmpl", 4, true, nil}, {"sig_algo", 4, true, nil},
		{"current_tcb", 8, false, tcb40}, {"plat_info", 8, true, nil},
		{"_author_key_en", 4, true, nil}, {"_reserved_0", 4, true, nil},
		{"report_data", 64, false, nil}, {"measurement", 48, false, nil}, {"host_data", 32, false, nil},
		{"id_key_digest", 48, false, nil}, {"author_key_digest", 48, false, nil},
		{"report_id", 32, false, nil}, {"report_id_ma", 32, false, nil},
		{"reported_tcb", 8, false, tcb40}, {"_reserved_1", 24, false, nil},
		{"chip_id", 64, false, nil}, {"committed_tcb", 8, false, tcb40},
		{"current_build", 1, true, nil}, {"current_minor", 1, true, nil}, {"current_major", 1, true, nil}, {"_reserved_2", 1, true, nil},
		{"committed_build", 1, true, nil}, {"committed_minor", 1, true, nil}, {"committed_major", 1, true, nil}, {"_reserved_3", 1, true, nil},
		{"launch_tcb", 8, false, tcb40}, {"_reserved_4", 168, false, nil},
		{"signature", 512, false, signature40},
	}
)

// snpToJSON40 writes the form of the sev crate 4.0.
func snpToJSON40(e Evidence) (json.RawMessage, error) {
	r, err := ParseSNP(e.Report)
	if err != nil {
		return nil, err
	}
	certs, err := certsToJSON(e.Aux, r.Signer())
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Report json.RawMessage `json:"attestation_report"`
		Certs  []certJSON      `json:"cert_chain"`
	}{append40(nil, report40, e.Report), certs})
}

func append40(out []byte, members []member40, b []byte) []byte {
	for i, m := range members {
		out = fmt.Appendf(out, "%c%q:", "{,"[min(i, 1)], m.name)
		switch {
		case m.of != nil:
			out = append40(out, m.of, b[:m.size])
		case m.num:
			var n [8]byte
			copy(n[:], b[:m.size])
			out = fmt.Append(out, binary.LittleEndian.Uint64(n[:]))
		default:
			list, _ := octets(b[:m.size]).MarshalJSON()
			out = append(out, list...)
		}
		b = b[m.size:]
	}
	return append(out, '}')
}

// is40 tells that form from the newer one, by a member that only it has.
func is40(report json.RawMessage) bool {
	return bytes.Contains(report, []byte(`"_author_key_en"`))
}

// members40 reads them into b, which is as long as they are.
func (f *fields) members40(name string, members []member40, b []byte) {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.name
	}
	o := f.object(name, names, nil)
	for _, m := range members {
		at := b[:m.size]
		b = b[m.size:]
		switch {
		case m.of != nil:
			o.members40(m.name, m.of, at)
		case m.num:
			o.little(m.name, at)
		default:
			o.octets(m.name, at)
		}
	}
}

// little reads a whole number that fits into dst, 1, 4 or 8 bytes.
func (f *fields) little(name string, dst []byte) {
	var n uint64
	f.number(name, &n)
	if bits := 8 * len(dst); *f.err == nil && bits < 64 && n>>bits != 0 {
		f.fail(name, fmt.Errorf("%d does not fit into %d bits", n, bits))
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	copy(dst, b[:])
}
