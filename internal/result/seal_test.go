package result

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
)

// identities makes one fresh key of each sort: the recipient and the file of its owner.
func identities(t *testing.T) map[string][2]string {
	x, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sshPub, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	return map[string][2]string{
		"X25519":       {x.Recipient().String(), "# a comment\n" + x.String() + "\n"},
		"post-quantum": {pq.Recipient().String(), pq.String()},
		"ssh-ed25519":  {string(ssh.MarshalAuthorizedKey(sshPub)), string(pem.EncodeToMemory(block))},
	}
}

func TestSealAndUnseal(t *testing.T) {
	keys := identities(t)
	for name, k := range keys {
		t.Run(name, func(t *testing.T) {
			if err := CheckRecipient(k[0]); err != nil {
				t.Fatal(err)
			}
			var sealed bytes.Buffer
			w, err := Seal(&sealed, []string{k[0]})
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("result "), 20000)
			w.Write(want)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(sealed.Bytes(), []byte("result")) {
				t.Error("the sealed result shows its content")
			}
			ids, err := ParseIdentities([]byte(k[1]))
			if err != nil {
				t.Fatal(err)
			}
			r, err := Unseal(bytes.NewReader(sealed.Bytes()), ids)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			cut, err := Unseal(bytes.NewReader(sealed.Bytes()[:70000]), ids)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(cut); err == nil {
				t.Error("a result cut short was taken for whole")
			}
		})
	}
}

func TestSealRefuses(t *testing.T) {
	keys := identities(t)
	for name, to := range map[string][]string{
		"nobody":                    nil,
		"a secret key":              {strings.TrimSpace(strings.TrimPrefix(keys["X25519"][1], "# a comment\n"))},
		"a key with a typing error": {"age1" + strings.Repeat("q", 58)},
		"post-quantum and not":      {keys["X25519"][0], keys["post-quantum"][0]},
	} {
		_, err := Seal(io.Discard, to)
		if err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error shows a secret key: %v", name, err)
		}
	}
}
