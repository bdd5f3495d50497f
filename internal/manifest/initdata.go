package manifest

import (
	"crypto/sha256"
	"fmt"
	"unicode/utf8"
)

// Wrap puts a manifest into a CoCo initdata document (wire/SPEC.md §3), as TOML: the same bytes on the host, which
// launches with their digest, and in the guest, which compares. The manifest comes back out of the document byte for
// byte. What is not UTF-8, and so no manifest, gives a document that is no TOML; no two manifests give the same.
func Wrap(raw []byte) []byte {
	b := []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"ampoule.json\" = \"")
	for len(raw) > 0 {
		c, n := utf8.DecodeRune(raw)
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c == '\t':
			b = append(b, `\t`...)
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c < ' ' || c == 0x7f:
			b = fmt.Appendf(b, `\u%04X`, c)
		default:
			b = append(b, raw[:n]...)
		}
		raw = raw[n:]
	}
	return append(b, "\"\n"...)
}

// InitdataDigest is the digest of an initdata document that says sha256: what HOST_DATA holds in full, MRCONFIGID
// followed by zeros, and what Azure's PCR 8 is extended with.
func InitdataDigest(doc []byte) [32]byte { return sha256.Sum256(doc) }
