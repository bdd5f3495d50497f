package image

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// maxJWE bounds a JWE, bytes. One for sixteen RSA keys of 4096 bits has about 13,000.
const maxJWE = 16 << 10

// What ocicrypt takes (keywrap/jwe). It writes A256GCM alone, under RSA-OAEP or ECDH-ES+A256KW unless a JWK says otherwise.
var (
	jweKeys    = []jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256, jose.ECDH_ES_A128KW, jose.ECDH_ES_A192KW, jose.ECDH_ES_A256KW}
	jweContent = []jose.ContentEncryption{jose.A128GCM, jose.A192GCM, jose.A256GCM, jose.A128CBC_HS256, jose.A192CBC_HS384, jose.A256CBC_HS512}
)

// jweKey is a layer key in a JWE, RFC 7516 §7.2: JSON, general or flattened.
type jweKey struct {
	jwe *jose.JSONWebEncryption
	n   int
}

// The members that a JWE of ocicrypt has. Others (zip, crit, jwk, x5c, aad, unprotected) are refused before the library
// sees them: nobody writes them here, and each is a parser more that faces the registry.
type (
	jweHeader struct {
		Alg string          `json:"alg"`
		Enc string          `json:"enc"`
		EPK json.RawMessage `json:"epk"`
		KID string          `json:"kid"`
	}
	jweRecipient struct {
		Header       *jweHeader `json:"header"`
		EncryptedKey string     `json:"encrypted_key"`
	}
	jweMessage struct {
		Protected string `json:"protected"`
		jweRecipient
		Recipients []jweRecipient `json:"recipients"`
		IV         string         `json:"iv"`
		Ciphertext string         `json:"ciphertext"`
		Tag        string         `json:"tag"`
	}
)

func parseJWE(b []byte) (unnamed, error) {
	if len(b) > maxJWE {
		return nil, fmt.Errorf("%w: JWE of %d bytes, at most %d are read", ErrTooBig, len(b), maxJWE)
	}
	var m jweMessage
	if err := exactly(b, &m); err != nil {
		return nil, fmt.Errorf("%w: JWE: %w", ErrFormat, err)
	}
	header, err := base64.RawURLEncoding.Strict().DecodeString(m.Protected)
	if err != nil {
		return nil, fmt.Errorf("%w: JWE protected header is not base64: %w", ErrFormat, err)
	}
	var h jweHeader
	if err := exactly(header, &h); err != nil {
		return nil, fmt.Errorf("%w: JWE protected header: %w", ErrFormat, err)
	}
	n := len(m.Recipients)
	switch {
	case n > 0 && m.Header != nil: // encrypted_key is there too: ocicrypt's library repeats that of the first
		return nil, fmt.Errorf("%w: JWE with recipients and with a header besides theirs", ErrFormat)
	case n == 0:
		n = 1
	case n > maxRecipients:
		return nil, fmt.Errorf("%w: JWE with %d recipients, at most %d", ErrTooBig, n, maxRecipients)
	}
	j, err := jose.ParseEncryptedJSON(string(b), jweKeys, jweContent)
	if err != nil {
		return nil, fmt.Errorf("%w: JWE: %w", ErrFormat, err)
	}
	return &jweKey{j, n}, nil
}

// exactly decodes one JSON object that has no members but those of v.
func exactly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("data after the JSON value")
	}
	return nil
}

func (k *jweKey) recipients() int { return k.n }

func (k *jweKey) open(id *identity) ([]byte, error) {
	var key any = id.rsa
	if id.ec != nil {
		key = id.ec
	}
	_, _, plain, err := k.jwe.DecryptMulti(key)
	if err != nil {
		return nil, errNotOurs
	}
	return plain, nil
}
