package object

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// FuzzDecrypt: whatever is in a spool, it opens as what its owner sealed or not at all.
func FuzzDecrypt(f *testing.F) {
	var chunks bytes.Buffer
	if err := seal(&chunks, bytes.NewReader(pattern(100)), testKey(), fixedHeader()); err != nil {
		f.Fatal(err)
	}
	gcm, err := newGCM(testKey())
	if err != nil {
		f.Fatal(err)
	}
	nonce := make([]byte, nonceSize)
	whole := gcm.Seal(bytes.Clone(nonce), nonce, pattern(100), nil)
	f.Add(chunks.Bytes())
	f.Add(whole)
	f.Add(append([]byte{headerSize}, make([]byte, 60)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		size := int64(len(b))
		if checkSealed(size, append(b, 0)[0]) != nil {
			return
		}
		spool, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer spool.Close()
		if _, err := spool.Write(b); err != nil {
			t.Fatal(err)
		}
		n, err := decrypt(t.Context(), spool, size, testKey())
		if err != nil {
			return
		}
		if !bytes.Equal(b, chunks.Bytes()) && !bytes.Equal(b, whole) {
			t.Fatalf("%x opens, to %d bytes", b, n)
		}
	})
}

// FuzzParseCredentials: what is taken can be put into a header, and nothing that is refused is quoted.
func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte(`{"Version":1,"AccessKeyId":"AKID","SecretAccessKey":"a\/b","SessionToken":null}`))
	f.Add([]byte(`{"Credentials":{"AccessKeyId":"AKID","SecretAccessKey":"s","SessionToken":"t","Expiration":"2026-01-01"}}`))
	f.Add([]byte(`{"access_token":"t"}`))
	f.Add([]byte("# x\n[default]\r\naws_access_key_id=a\naws_secret_access_key = b\n[other]\naws_access_key_id=c"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseCredentials(b)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Fatalf("a long error: %v", err)
			}
			return
		}
		if l.bearer() == (len(l.id) > 0 && len(l.secret) > 0) {
			t.Fatalf("%q is neither key nor token, or both", b)
		}
		for _, v := range [][]byte{l.id, l.secret, l.session, l.token} {
			if bytes.ContainsAny(v, "\r\n\x00 ") {
				t.Fatalf("%q in %q", v, b)
			}
		}
		if s := fmt.Sprint(l) + fmt.Sprintf("%#v %+v", l, l); len(l.secret) > 8 && bytes.Contains([]byte(s), l.secret) {
			t.Fatal("a secret is shown")
		}
		held := [][]byte{l.id, l.secret, l.session, l.token}
		l.Zero()
		for _, v := range held {
			if len(bytes.Trim(v, "\x00")) > 0 {
				t.Fatal("a secret is left")
			}
		}
	})
}

func TestParseCredentials(t *testing.T) {
	const key, file = `"AccessKeyId":"AKID","SecretAccessKey":"s3cret"`, "aws_access_key_id = AKID\naws_secret_access_key = s3cret\n"
	for name, c := range map[string]struct {
		doc string
		ok  bool
	}{
		"a key":                         {`{` + key + `}`, true},
		"credential_process":            {`{"Version":1,` + key + `,"SessionToken":"t","Expiration":"x"}`, true},
		"the token service's answer":    {`{"AssumedRoleUser":{},"Credentials":{` + key + `}}`, true},
		"a token":                       {`{"access_token":"s3cret","expires_in":3599,"token_type":"Bearer"}`, true},
		"a file":                        {"[default]\n" + file, true},
		"a file without a profile":      {file, true},
		"a file of two profiles":        {"[other]\naws_access_key_id=x\naws_access_key_id=x\n\n; c\n[default]\nregion = x\n" + file, true},
		"a file of another profile":     {"[other]\n" + file, false},
		"a file that says it twice":     {file + file, false},
		"a key and a token":             {`{` + key + `,"access_token":"s3cret"}`, false},
		"half a key":                    {`{"AccessKeyId":"AKID"}`, false},
		"an escape":                     {`{"AccessKeyId":"AKID","SecretAccessKey":"s3cret\u0041"}`, false},
		"a line break":                  {`{"access_token":"s3cret` + "\u00a0" + `"}`, false},
		"a number":                      {`{"AccessKeyId":1,"SecretAccessKey":"s3cret"}`, false},
		"twice":                         {`{` + key + `,"AccessKeyId":"s3cret"}`, false},
		"something behind":              {`{` + key + `} s3cret`, false},
		"white space in the key":        {"aws_access_key_id = AKID\naws_secret_access_key = s3cret s3cret\n", false},
		"nothing":                       {"", false},
		"more than it may be":           {`{` + key + `,"x":"` + string(bytes.Repeat([]byte("x"), MaxCredentials)) + `"}`, false},
		"a service account of Google's": {`{"type":"service_account","private_key":"s3cret"}`, false},
	} {
		l, err := ParseCredentials([]byte(c.doc))
		if (err == nil) != c.ok || err != nil && bytes.Contains([]byte(err.Error()), []byte("s3cret")) {
			t.Errorf("%s: %v, want it taken: %t", name, err, c.ok)
		}
		if c.ok && string(l.secret)+string(l.token) != "s3cret" {
			t.Errorf("%s: read as %q %q", name, l.secret, l.token)
		}
	}
}
