package openpgp

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	library "github.com/ProtonMail/go-crypto/openpgp"
)

var update = flag.Bool("update", false, "write the recorded keys and messages anew, with gpg")

// gpg is GnuPG with a home of its own.
type gpg struct {
	*testing.T
	home string
}

func newGPG(t *testing.T) *gpg {
	t.Helper()
	if _, err := exec.LookPath("gpg"); err != nil {
		t.Skip("there is no gpg here; install gnupg to hold this package against it")
	}
	home, err := os.MkdirTemp("", "gpg-") // not TempDir: the agent's socket must have a short path
	if err != nil {
		t.Fatal(err)
	}
	g := &gpg{t, home}
	t.Cleanup(func() {
		stop := exec.Command("gpgconf", "--kill", "gpg-agent")
		stop.Env = append(os.Environ(), "GNUPGHOME="+home)
		if err := stop.Run(); err != nil {
			t.Log("gpgconf: ", err)
		}
		os.RemoveAll(home)
	})
	return g
}

func (g *gpg) try(in []byte, args ...string) ([]byte, error) {
	c := exec.CommandContext(g.Context(), "gpg", append([]string{"--homedir", g.home, "--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
	c.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil {
		g.Logf("gpg %q: %v\n%s", args, err, errs.Bytes())
	}
	return out, err
}

func (g *gpg) run(in []byte, args ...string) []byte {
	g.Helper()
	out, err := g.try(in, args...)
	if err != nil {
		g.Fatal(err)
	}
	return out
}

// key makes one: primary for certification and signing, or for certification alone with a subkey that signs.
func (g *gpg) key(name, algorithm, sub string, args ...string) {
	g.Helper()
	use := "cert,sign"
	if sub != "" {
		use = "cert"
	}
	g.run(nil, append(args, "--quick-generate-key", name, algorithm, use, "never")...)
	if sub != "" {
		g.run(nil, append(args, "--quick-add-key", g.fingerprint(name), sub, "sign", "never")...)
	}
}

func (g *gpg) fingerprint(name string) string {
	g.Helper()
	for line := range strings.Lines(string(g.run(nil, "--with-colons", "--list-keys", exact(name)))) {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			return f[9]
		}
	}
	g.Fatalf("gpg knows no key of %s", name)
	return ""
}

func (g *gpg) public(names ...string) *Keys {
	g.Helper()
	args := []string{"--export"}
	for _, name := range names {
		args = append(args, exact(name))
	}
	k, err := ReadKeys(g.run(nil, args...))
	if err != nil {
		g.Fatal(err)
	}
	return k
}

func (g *gpg) sign(name string, args ...string) []byte {
	g.Helper()
	return g.run([]byte(said), append(append([]string{"--local-user", exact(name)}, args...), "--sign")...)
}

// exact is how gpg takes the whole of a name; of part of one it takes the first that has it.
func exact(name string) string { return "=" + name }

// recorded are the keys whose public halves and messages are in testdata: test keys, made for this and thrown away.
var recorded = map[string]struct{ algorithm, sub string }{
	"rsa": {"rsa3072", ""}, "p384": {"nistp384", ""}, "ed25519": {"ed25519", "ed25519"},
}

// TestRecorded: what gpg signed once verifies wherever this runs.
func TestRecorded(t *testing.T) {
	if *update {
		g := newGPG(t)
		for name, k := range recorded {
			g.key(name, k.algorithm, k.sub)
			for file, b := range map[string][]byte{".asc": g.run(nil, "--armor", "--export", exact(name)), ".sig": g.sign(name)} {
				if err := os.WriteFile(filepath.Join("testdata", name+file), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name := range recorded {
		keys, message := record(t, name)
		content, signer, err := keys.Verify(message, time.Now())
		if err != nil || string(content) != said || len(signer) != 40 {
			t.Errorf("%s: %q by %s, %v", name, content, signer, err)
		}
		for i := range message {
			bad := bytes.Clone(message)
			bad[i] ^= 1
			// Some bits say nothing: those of names and dates of the literal, and of hints.
			if content, _, err := keys.Verify(bad, time.Now()); err == nil && string(content) != said {
				t.Errorf("%s: byte %d altered: %q", name, i, content)
			}
			if _, _, err := keys.Verify(message[:i], time.Now()); err == nil {
				t.Errorf("%s: verifies without what is after byte %d", name, i)
			}
		}
		for other := range recorded {
			strangers, _ := record(t, other)
			if _, _, err := strangers.Verify(message, time.Now()); other != name && (err == nil || !strings.Contains(err.Error(), "which is none of these")) {
				t.Errorf("%s under %s: %v", name, other, err)
			}
		}
	}
}

func record(t testing.TB, name string) (*Keys, []byte) {
	t.Helper()
	asc, err := os.ReadFile(filepath.Join("testdata", name+".asc"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := ReadKeys(asc)
	if err != nil {
		t.Fatal(err)
	}
	message, err := os.ReadFile(filepath.Join("testdata", name+".sig"))
	if err != nil {
		t.Fatal(err)
	}
	return keys, message
}

// TestAgainstGPG: gpg signs in every way that it has, and this package says of each what it should.
func TestAgainstGPG(t *testing.T) {
	g := newGPG(t)
	for _, algorithm := range []string{"rsa2048", "nistp256", "nistp521", "ed25519", "dsa2048", "brainpoolP256r1"} {
		g.key(algorithm, algorithm, "")
	}
	g.key("sub", "rsa2048", "nistp256/ecdsa")
	ring := g.public()
	for name, c := range map[string]struct {
		key  string
		args []string
		want string // of the error; empty: good
	}{
		"RSA":                {"rsa2048", nil, ""},
		"P-256":              {"nistp256", nil, ""},
		"P-521":              {"nistp521", nil, ""},
		"Ed25519":            {"ed25519", nil, ""},
		"a subkey":           {"sub", nil, ""},
		"not compressed":     {"rsa2048", []string{"--compress-algo", "none"}, ""},
		"ZLIB":               {"rsa2048", []string{"--compress-algo", "zlib"}, ""},
		"BZIP2":              {"rsa2048", []string{"--compress-algo", "bzip2"}, "is compressed in way 3"},
		"SHA-256":            {"rsa2048", []string{"--digest-algo", "SHA256"}, ""},
		"SHA-384":            {"rsa2048", []string{"--digest-algo", "SHA384"}, ""},
		"SHA-224":            {"rsa2048", []string{"--digest-algo", "SHA224"}, "uses hash 11"},
		"SHA-1":              {"rsa2048", []string{"--digest-algo", "SHA1"}, "uses hash 2"},
		"text":               {"rsa2048", []string{"--textmode"}, "signature of type 0x1"},
		"two signers":        {"rsa2048", []string{"--local-user", "ed25519"}, "is not one signature around one literal"},
		"armour":             {"rsa2048", []string{"--armor"}, "is not in OpenPGP packets"},
		"DSA":                {"dsa2048", nil, "none of these"},
		"a Brainpool curve":  {"brainpoolP256r1", nil, "none of these"},
		"a notation":         {"rsa2048", []string{"--sig-notation", "a@b.example=c"}, ""},
		"a critical one":     {"rsa2048", []string{"--sig-notation", "!a@b.example=c"}, "subpacket of type 20"},
		"a critical address": {"rsa2048", []string{"--sig-policy-url", "!https://a.example"}, "subpacket of type 26"},
		"one that expires":   {"rsa2048", []string{"--default-sig-expire", "2d"}, ""},
		"one of the future":  {"rsa2048", []string{"--default-sig-expire", "seconds=1", "--faked-system-time", "20300101T000000"}, "is after the clock's"},
	} {
		message := g.sign(c.key, c.args...)
		content, signer, err := ring.Verify(message, time.Now())
		switch {
		case c.want == "" && (err != nil || string(content) != said || signer != g.fingerprint(c.key)):
			t.Errorf("%s: %q by %s, %v", name, content, signer, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || content != nil):
			t.Errorf("%s: %q, %v, want %q", name, content, err, c.want)
		}
		if _, _, err := ring.Verify(message, time.Now().AddDate(0, 0, 3)); (c.want == "") != (err == nil) && name != "one that expires" {
			t.Errorf("%s, three days later: %v", name, err)
		} else if name == "one that expires" && err == nil {
			t.Errorf("%s holds three days later", name)
		}
	}
}

// TestKeysOfGPG: what becomes of a signature when its key does.
func TestKeysOfGPG(t *testing.T) {
	g := newGPG(t)
	wants := func(what, name string, message []byte, now time.Time, want string) {
		t.Helper()
		_, _, err := g.public(name).Verify(message, now)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	now := time.Now()
	g.key("a", "ed25519", "")
	message := g.sign("a")
	wants("a key", "a", message, now, "")
	g.run(nil, "--quick-set-expire", g.fingerprint("a"), "30d")
	wants("a key that will expire", "a", message, now, "")
	wants("a key that has expired", "a", message, now.AddDate(0, 0, 31), "which expired on")
	g.run(nil, "--quick-add-uid", exact("a"), "another")
	g.run(nil, "--quick-revoke-uid", exact("a"), "another")
	wants("a user ID that is revoked", "a", message, now, "")
	raw, err := packets(g.run(nil, "--export", exact("a")))
	if err != nil {
		t.Fatal(err)
	}
	alone := raw[:1:1]
	for i, p := range raw {
		if p.tag == tagUserID && string(p.body) == "another" {
			alone = append(alone, raw[i:]...)
		}
	}
	if k, err := ReadKeys(encode(alone)); err != nil || len(alone) < 4 {
		t.Errorf("%d packets, %v", len(alone), err)
	} else if _, _, err := k.Verify(message, now); err == nil || !strings.Contains(err.Error(), "none of these") {
		t.Errorf("a key whose one user ID is revoked: %v", err)
	}
	revocation, err := os.ReadFile(filepath.Join(g.home, "openpgp-revocs.d", g.fingerprint("a")+".rev"))
	if err != nil {
		t.Fatal(err)
	}
	g.run(bytes.Replace(revocation, []byte("\n:-----BEGIN"), []byte("\n-----BEGIN"), 1), "--import")
	wants("a key that is revoked", "a", message, now, "none of these")

	g.key("b", "ed25519", "ed25519")
	message = g.sign("b")
	wants("a subkey", "b", message, now, "")
	g.run(nil, "--quick-set-expire", g.fingerprint("b"), "60d")
	wants("a subkey whose primary key has expired", "b", message, now.AddDate(0, 0, 61), "which expired on")
	g.run(nil, "--quick-set-expire", g.fingerprint("b"), "30d", "*")
	wants("a subkey that has expired", "b", message, now.AddDate(0, 0, 31), "which expired on")
	g.run([]byte("key 1\nrevkey\ny\n0\n\ny\nsave\n"), "--no-batch", "--command-fd", "0", "--edit-key", exact("b"))
	wants("a subkey that is revoked", "b", message, now, "none of these")

	g.key("e", "rsa2048", "")
	g.run(nil, "--quick-add-key", g.fingerprint("e"), "rsa2048", "encr", "never")
	wants("a key with one for encryption", "e", g.sign("e"), now, "")
	wants("a signature older than its key", "e", g.sign("e", "--faked-system-time", "20200101T000000", "--ignore-time-conflict"), now, "made on 2020-01-01, before the key")
	g.run(nil, "--quick-generate-key", "c", "rsa1024", "cert,sign", "never")
	wants("RSA of 1024 bits", "c", g.sign("c"), now, "none of these")
	g.key("s", "rsa2048", "", "--cert-digest-algo", "SHA1")
	wants("a self-signature over SHA-1", "s", g.sign("s"), now, "none of these")
	if _, err := ReadKeys(g.run(nil, "--export-secret-keys", exact("s"))); err == nil || !strings.Contains(err.Error(), "packet of type 5") {
		t.Errorf("a secret key: %v", err)
	}
}

// ringBytes are recorded keys without their armour.
func ringBytes(t testing.TB, name string) []byte {
	t.Helper()
	asc, err := os.ReadFile(filepath.Join("testdata", name+".asc"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := unarmor(asc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func libraryRing(t testing.TB, name string) library.EntityList {
	t.Helper()
	l, err := library.ReadKeyRing(bytes.NewReader(ringBytes(t, name)))
	if err != nil {
		t.Fatal(err)
	}
	return l
}
