package object

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ampoule-vm/ampoule/internal/evidence"
)

// MaxCredentials is the size in bytes beyond which a document of credentials is refused.
const MaxCredentials = 64 << 10

// Credentials are an access key or an access token. They are secret.
type Credentials struct {
	id, secret, session []byte // of AWS, or an HMAC key of Google's; session may be empty
	token               []byte // of OAuth
}

const hidden = "[secret]"

func (*Credentials) String() string               { return hidden }
func (*Credentials) GoString() string             { return hidden }
func (*Credentials) LogValue() slog.Value         { return slog.StringValue(hidden) }
func (*Credentials) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

func (l *Credentials) all() [4]*[]byte { return [...]*[]byte{&l.id, &l.secret, &l.session, &l.token} }

func (l *Credentials) bearer() bool { return len(l.token) > 0 }

// Zero overwrites and forgets everything. What requests were signed with it does not reach.
func (l *Credentials) Zero() {
	for _, b := range l.all() {
		clear(*b)
	}
	*l = Credentials{}
}

// ParseCredentials reads what a key broker keeps: JSON in the words of AWS' credential_process, with or without "Credentials" around it as
// its security token service answers; an AWS credentials file, of which the default profile counts; or {"access_token": "…"}. It keeps
// none of b, and quotes none of it.
func ParseCredentials(b []byte) (_ *Credentials, err error) {
	l := &Credentials{}
	defer func() {
		if err != nil {
			l.Zero()
			err = fmt.Errorf("store credentials: %w", err)
		}
	}()
	if len(b) > MaxCredentials {
		return nil, fmt.Errorf("%d bytes, at most %d", len(b), MaxCredentials)
	}
	if t := bytes.TrimSpace(b); len(t) > 0 && t[0] == '{' {
		err = l.object(t)
	} else {
		err = l.file(b)
	}
	switch {
	case err != nil:
		return nil, err
	case l.bearer() && (len(l.id) > 0 || len(l.secret) > 0):
		return nil, errors.New("an access key and an access token; keep one")
	case !l.bearer() && (len(l.id) == 0 || len(l.secret) == 0):
		return nil, errors.New("want AccessKeyId and SecretAccessKey, the default profile of an AWS credentials file, or access_token")
	}
	for _, v := range l.all() {
		if bytes.ContainsFunc(*v, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, errors.New("a value with white space, or not in ASCII")
		}
	}
	return l, nil
}

func (l *Credentials) object(raw []byte) error {
	m, err := evidence.Object(raw)
	if err != nil {
		return errors.New("is not a JSON object with each member once")
	}
	defer func() {
		for _, v := range m {
			clear(v)
		}
	}()
	if inner := m["Credentials"]; len(inner) > 0 && inner[0] == '{' {
		return l.object(inner)
	}
	for i, name := range []string{"AccessKeyId", "SecretAccessKey", "SessionToken", "access_token"} {
		if v := m[name]; len(v) > 0 && string(v) != "null" {
			if *l.all()[i], err = text(v); err != nil {
				return fmt.Errorf("%s %w", name, err)
			}
		}
	}
	return nil
}

// text is a JSON string without a copy in a Go string. Of the escapes only \/ has a place in a key, which some encoders write.
func text(v json.RawMessage) ([]byte, error) {
	if len(v) < 2 || v[0] != '"' {
		return nil, errors.New("is no string")
	}
	v = v[1 : len(v)-1]
	out := make([]byte, 0, len(v))
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' {
			if i++; i == len(v) || v[i] != '/' {
				clear(out)
				return nil, errors.New("has an escape")
			}
		}
		out = append(out, v[i])
	}
	return out, nil
}

// file reads an AWS credentials file: lines of name = value below [default].
func (l *Credentials) file(b []byte) error {
	profile := "default" // a file of one profile may leave out its name
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' && line[len(line)-1] == ']' {
			profile = string(bytes.TrimSpace(line[1 : len(line)-1]))
			continue
		}
		name, value, ok := bytes.Cut(line, []byte("="))
		if !ok {
			return errors.New("is neither JSON nor lines of name = value")
		}
		if profile != "default" {
			continue
		}
		var to *[]byte
		switch string(bytes.TrimSpace(name)) {
		case "aws_access_key_id":
			to = &l.id
		case "aws_secret_access_key":
			to = &l.secret
		case "aws_session_token":
			to = &l.session
		default:
			continue
		}
		if *to != nil {
			return errors.New("a name twice in the default profile")
		}
		*to = bytes.Clone(bytes.TrimSpace(value))
	}
	return nil
}
