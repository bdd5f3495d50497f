package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// TestPublicRoots: on a machine without files of roots, as the guest is one, nothing is trusted at first, and then the bundle. It needs a
// process of its own, for the roots of a machine are read once.
func TestPublicRoots(t *testing.T) {
	const child = "AMPOULE_TEST_ROOTS"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPublicRoots$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1", "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	var roots []*x509.Certificate
	for root := range bundle.Roots() {
		c, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if root.Constraint == nil && time.Now().Before(c.NotAfter) {
			roots = append(roots, c)
		}
	}
	if len(roots) < 50 {
		t.Fatalf("the bundle has %d roots that are valid", len(roots))
	}
	trusted := func() (n int) {
		for _, c := range roots {
			if _, err := c.Verify(x509.VerifyOptions{}); err == nil {
				n++
			}
		}
		return n
	}
	if n := trusted(); n != 0 {
		t.Errorf("%d roots are trusted before they are asked for", n)
	}
	trustPublicRoots()
	trustPublicRoots() // a second time is nothing
	if n := trusted(); n != len(roots) {
		t.Errorf("%d of %d roots are trusted", n, len(roots))
	}
}
