package image

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Annotations of an encrypted layer, wire/SPEC.md §4.1.
const (
	annotationPrefix   = "org.opencontainers.image.enc."
	annotationProvider = annotationPrefix + "keys.provider."
	annotationKeys     = annotationProvider + "attestation-agent"
	annotationJWE      = annotationPrefix + "keys.jwe"
	annotationPKCS7    = annotationPrefix + "keys.pkcs7"
	annotationOpts     = annotationPrefix + "pubopts"

	layerCipher = "AES_256_CTR_HMAC_SHA256"
	wrapGCM     = "A256GCM"
	wrapCTR     = "A256CTR"

	// keySize is the size of a key encryption key and of a layer key, bytes.
	keySize = 32
	macSize = 32

	maxAnnotation = 64 << 10 // bytes; a real packet has about 500
	maxRecipients = 16

	// samplePath names a key whose 32 bytes are published in the key provider's source.
	samplePath = "default/test-key/1"
)

// Keys are what opens layers: KBS path ("repo/type/tag") → the 32 bytes of a key encryption key, or a private key of any
// form that [CheckIdentity] takes. Key packets name their key; JWE and PKCS #7 do not, and are tried with every private key.
type Keys map[string][]byte

func (Keys) String() string               { return "[secret]" }
func (Keys) GoString() string             { return "[secret]" }
func (Keys) LogValue() slog.Value         { return slog.StringValue("[secret]") }
func (Keys) MarshalJSON() ([]byte, error) { return []byte(`"[secret]"`), nil }

// Zero overwrites all keys and empties the map.
func (k Keys) Zero() {
	for _, b := range k {
		clear(b)
	}
	clear(k)
}

// packet is one wrapped layer key: CoCo's annotation packet, v1 or v2 (wire/SPEC.md §4.3).
type packet struct {
	path     string // repo/type/tag
	host     string // the authority that the key id names, or ""
	wrapped  []byte
	iv       []byte
	wrapType string
}

// sealing is all that an encrypted layer's annotations say.
type sealing struct {
	packets []packet
	unnamed []unnamed
	mac     [macSize]byte
	nonce   []byte // from the public options; nil when the private ones hold it
}

// layerKey opens one layer. Its owner calls zero.
type layerKey struct {
	sym    [keySize]byte
	nonce  [aes.BlockSize]byte
	digest string // of the plaintext blob
	fixed  bool   // key and nonce are as their owner wrote them: with the HMAC, every bit of the plaintext is
}

func (*layerKey) String() string       { return "[secret]" }
func (*layerKey) GoString() string     { return "[secret]" }
func (*layerKey) LogValue() slog.Value { return slog.StringValue("[secret]") }

func (k *layerKey) zero() {
	clear(k.sym[:])
	clear(k.nonce[:])
}

// KeyPath is the "repo/type/tag" of a key id. Besides kbs:///repo/type/tag it takes what
// key providers write in the field: a host after the scheme, no scheme, no scheme and a
// leading slash (wire/SPEC.md §4.3). The host is dropped: which KBS to ask is the
// manifest's word, never the image's ([Image.KeyHosts] tells whether they agree).
func KeyPath(kid string) (string, error) {
	_, path, err := splitKID(kid)
	return path, err
}

func splitKID(kid string) (host, path string, err error) {
	bad := func(why string) (string, string, error) {
		return "", "", fmt.Errorf("%w: key id %.200q %s; write kbs:///repo/type/tag", ErrKey, kid, why)
	}
	rest, schemed := strings.CutPrefix(kid, "kbs://")
	if !schemed && strings.Contains(kid, "://") {
		return bad("has a scheme that is not kbs")
	}
	parts := strings.Split(rest, "/")
	switch {
	case len(parts) == 4: // host, possibly empty, first
		host, parts = parts[0], parts[1:]
	case len(parts) == 3 && !schemed:
	default:
		return bad("does not have three path components")
	}
	for _, p := range parts {
		if !plainName(p) {
			return bad("has a component that is empty, a dot name, over 128 bytes or not of A-Z a-z 0-9 . _ -")
		}
	}
	return host, strings.Join(parts, "/"), nil
}

func plainName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-", c) >= 0) {
			return false
		}
	}
	return true
}

// unnamed is a layer key wrapped for a key pair. It does not say which: whoever has the private key finds out.
type unnamed interface {
	open(*identity) ([]byte, error)
	recipients() int
}

// parseSealing reads an encrypted layer's annotations. Recipients that this cannot read are passed over as long as there
// is one that it can.
func parseSealing(annotations map[string]string) (*sealing, error) {
	var s sealing
	var problems []error
	var size, recipients int
	for _, name := range recipientAnnotations(annotations) {
		if size += len(annotations[name]); size > maxAnnotation {
			return nil, fmt.Errorf("%w: the annotations of recipients, %s among them, have over %d bytes", ErrTooBig, name, maxAnnotation)
		}
		for item := range strings.SplitSeq(annotations[name], ",") {
			n, err := s.add(name, item)
			if errors.Is(err, ErrSampleKey) {
				return nil, err // whatever the other recipients are, the world can read this layer
			}
			if err != nil {
				problems = append(problems, fmt.Errorf("annotation %s: %w", name, err))
			}
			if recipients += max(n, 1); recipients > maxRecipients {
				return nil, fmt.Errorf("%w: the layer has over %d recipients", ErrTooBig, maxRecipients)
			}
		}
	}
	switch {
	case len(s.packets)+len(s.unnamed) > 0:
	case len(problems) > 0:
		return nil, errors.Join(problems...)
	default:
		return nil, fmt.Errorf("%w: none of the annotations %sNAME, %s and %s is there; encrypt for the provider attestation-agent, or for a JWE or PKCS #7 key",
			ErrKey, annotationProvider, annotationJWE, annotationPKCS7)
	}

	opts := annotations[annotationOpts]
	if len(opts) > maxAnnotation {
		return nil, fmt.Errorf("%w: annotation %s has %d bytes, at most %d are read", ErrTooBig, annotationOpts, len(opts), maxAnnotation)
	}
	b, err := base64.StdEncoding.Strict().DecodeString(opts)
	if err != nil {
		return nil, fmt.Errorf("%w: annotation %s is not base64: %w", ErrFormat, annotationOpts, err)
	}
	var pub publicOptions
	if err := one(b, &pub); err != nil {
		return nil, fmt.Errorf("%w: annotation %s: %w", ErrFormat, annotationOpts, err)
	}
	nonce := pub.CipherOptions["nonce"]
	switch {
	case pub.Cipher != layerCipher:
		return nil, fmt.Errorf("%w: layer cipher %.80q, only %s is known", ErrFormat, pub.Cipher, layerCipher)
	case len(pub.HMAC) != macSize:
		return nil, fmt.Errorf("%w: HMAC has %d bytes, want %d", ErrFormat, len(pub.HMAC), macSize)
	case nonce != nil && len(nonce) != aes.BlockSize:
		return nil, fmt.Errorf("%w: public nonce has %d bytes, want %d", ErrFormat, len(nonce), aes.BlockSize)
	}
	s.mac, s.nonce = [macSize]byte(pub.HMAC), nonce
	return &s, nil
}

// recipientAnnotations are the names of those that hold recipients: of key providers, CoCo's usual one first, then of key
// pairs. How a key provider is called is the choice of whoever configured the tool that encrypted, so that what counts is
// whether it holds CoCo's packets.
func recipientAnnotations(annotations map[string]string) []string {
	var names []string
	for name, v := range annotations {
		if v != "" && (strings.HasPrefix(name, annotationProvider) || name == annotationJWE || name == annotationPKCS7) {
			names = append(names, name)
		}
	}
	rank := func(name string) int {
		switch name {
		case annotationKeys:
			return 0
		case annotationJWE, annotationPKCS7:
			return 2
		}
		return 1
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(rank(a)-rank(b), strings.Compare(a, b)) })
	return names
}

// add reads one item of an annotation, and tells how many recipients it holds.
func (s *sealing) add(annotation, item string) (recipients int, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(item)
	if err != nil {
		return 0, fmt.Errorf("%w: packet is not base64: %w", ErrFormat, err)
	}
	var u unnamed
	switch annotation {
	case annotationJWE:
		u, err = parseJWE(b)
	case annotationPKCS7:
		u, err = parsePKCS7(b)
	default:
		var p packet
		if p, err = parsePacket(b); err == nil {
			s.packets = append(s.packets, p)
		}
		return 1, err
	}
	if err != nil {
		return 0, err
	}
	s.unnamed = append(s.unnamed, u)
	return u.recipients(), nil
}

type publicOptions struct {
	Cipher        string            `json:"cipher"`
	HMAC          []byte            `json:"hmac"`
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

type privateOptions struct {
	Symkey        []byte            `json:"symkey"`
	Digest        string            `json:"digest"`
	CipherOptions map[string][]byte `json:"cipheroptions"`
}

// wirePacket is a packet as JSON has it; the fields and their order are CoCo's.
type wirePacket struct {
	Version     string          `json:"version,omitempty"`
	KID         string          `json:"kid"`
	WrappedData []byte          `json:"wrapped_data"`
	Provider    string          `json:"provider,omitempty"`
	IV          []byte          `json:"iv,omitempty"`
	WrapType    string          `json:"wrap_type,omitempty"`
	Settings    json.RawMessage `json:"provider_settings,omitempty"`
	Annotations json.RawMessage `json:"annotations,omitempty"`
}

func parsePacket(b []byte) (packet, error) {
	var w wirePacket
	if err := one(b, &w); err != nil {
		return packet{}, fmt.Errorf("%w: key packet: %w", ErrFormat, err)
	}
	if w.Version != "" && w.Version != "0.1.0" {
		return packet{}, fmt.Errorf("%w: key packet version %.40q, known are none and 0.1.0", ErrFormat, w.Version)
	}
	if w.Provider != "" && w.Provider != "kbs" {
		return packet{}, fmt.Errorf("%w: key packet is for the key service %.40q, only kbs is served", ErrKey, w.Provider)
	}
	host, path, err := splitKID(w.KID)
	if err != nil {
		return packet{}, err
	}
	if path == samplePath {
		return packet{}, fmt.Errorf("%w (%s): anybody can read the layer; encrypt it again under a key of your own", ErrSampleKey, w.KID)
	}
	var want int
	switch w.WrapType {
	case wrapGCM:
		want = 12
	case wrapCTR:
		want = aes.BlockSize
	default:
		return packet{}, fmt.Errorf("%w: key packet wrap_type %.40q, known are %s and %s", ErrFormat, w.WrapType, wrapGCM, wrapCTR)
	}
	if len(w.IV) != want {
		return packet{}, fmt.Errorf("%w: key packet iv has %d bytes, %s wants %d", ErrFormat, len(w.IV), w.WrapType, want)
	}
	return packet{path: path, host: host, wrapped: w.WrappedData, iv: w.IV, wrapType: w.WrapType}, nil
}

// unwrap opens the first recipient for which there is a key: the packets in their order, then what names no key.
func (s *sealing) unwrap(keys Keys) (*layerKey, error) {
	var problems []error
	for _, p := range s.packets {
		kek, have := keys[p.path]
		if !have {
			problems = append(problems, fmt.Errorf("%w: %s was not given", ErrKey, p.path))
			continue
		}
		k, err := p.unwrap(kek, s.nonce)
		if err == nil {
			return k, nil
		}
		problems = append(problems, fmt.Errorf("%w: %s: %w", ErrKey, p.path, err))
	}
	if len(s.unnamed) > 0 {
		k, err := s.unwrapUnnamed(keys)
		if err == nil {
			return k, nil
		}
		problems = append(problems, err)
	}
	return nil, errors.Join(problems...)
}

func (p packet) unwrap(kek, publicNonce []byte) (*layerKey, error) {
	opts, err := p.open(kek)
	if err != nil {
		return nil, err
	}
	return newLayerKey(opts, publicNonce, p.wrapType == wrapGCM)
}

func (s *sealing) unwrapUnnamed(keys Keys) (*layerKey, error) {
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: no private key was given for the JWE or PKCS #7 recipients", ErrKey)
	}
	var problems []error
	for _, path := range slices.Sorted(maps.Keys(keys)) {
		err := errNotOurs
		id, bad := parseIdentity(keys[path])
		if bad != nil {
			problems = append(problems, fmt.Errorf("%w: %s: %w", ErrKey, path, bad))
			continue
		}
		for _, u := range s.unnamed {
			opts, e := u.open(id)
			if e != nil {
				continue // the next one may be ours; what is wrong with a stranger's says nothing
			}
			var k *layerKey
			if k, err = newLayerKey(opts, s.nonce, true); err == nil {
				id.zero()
				return k, nil
			}
		}
		id.zero()
		problems = append(problems, fmt.Errorf("%w: %s: %w", ErrKey, path, err))
	}
	return nil, errors.Join(problems...)
}

// newLayerKey reads the private options of a layer, and wipes them. authentic tells whether they are as somebody wrote them.
func newLayerKey(opts, publicNonce []byte, authentic bool) (*layerKey, error) {
	defer clear(opts)
	var priv privateOptions
	defer func() { clear(priv.Symkey) }()
	if err := one(opts, &priv); err != nil {
		// The JSON error would quote bytes of a decryption; it stays here.
		return nil, errors.New("the key opens the packet to something that is no layer key: it is another key, or the packet was altered")
	}
	nonce := publicNonce
	if nonce == nil {
		nonce = priv.CipherOptions["nonce"]
	}
	switch {
	case len(priv.Symkey) != keySize:
		return nil, fmt.Errorf("the layer key has %d bytes, want %d", len(priv.Symkey), keySize)
	case len(nonce) != aes.BlockSize:
		return nil, fmt.Errorf("the nonce has %d bytes, want %d", len(nonce), aes.BlockSize)
	case !isDigest(priv.Digest):
		return nil, fmt.Errorf("the plaintext digest %.80q is not sha256 and 64 hex digits", priv.Digest)
	}
	return &layerKey{[keySize]byte(priv.Symkey), [aes.BlockSize]byte(nonce), priv.Digest, publicNonce == nil && authentic}, nil
}

// open gives what is wrapped. Under A256CTR, which has no tag, another key gives other bytes.
func (p packet) open(kek []byte) ([]byte, error) {
	if len(kek) != keySize {
		return nil, fmt.Errorf("the key has %d bytes, want %d%s", len(kek), keySize, textHint(kek))
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	if p.wrapType == wrapCTR {
		opts := make([]byte, len(p.wrapped))
		cipher.NewCTR(block, p.iv).XORKeyStream(opts, p.wrapped)
		return opts, nil
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	opts, err := gcm.Open(nil, p.iv, p.wrapped, nil)
	if err != nil {
		return nil, errors.New("the key does not open the packet: it is another key, or the packet was altered")
	}
	return opts, nil
}

// textHint says what is commonly wrong with a key of the wrong size: its text was stored.
func textHint(kek []byte) string {
	t := strings.TrimSpace(string(kek))
	switch {
	case len(t) == 64 && strings.Trim(t, "0123456789abcdefABCDEF") == "":
		return "; it looks like hex text: store the raw bytes at the KBS"
	case len(t) == 44 && strings.HasSuffix(t, "="):
		return "; it looks like base64 text: store the raw bytes at the KBS"
	}
	return ""
}

// one decodes exactly one JSON value.
func one(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data after the JSON value")
	}
	return nil
}
