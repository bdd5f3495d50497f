package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/result"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

const verifyHelp = `
usage: ampoule verify [flags] RECEIPT

Checks the hardware's signature on a receipt and everything that it binds, offline, and prints what is proven.
With --measurement the launch measurement must be one of those; with --manifest and --result the receipt must be
about them. What is not given is printed as not checked. --test-root accepts a simulated TEE, which proves nothing
to anyone else.

Examples:
  ampoule verify --measurement 4f…9a --manifest job.json --result result.tar.age receipt.json
  ampoule verify --json receipt.json`

func verifyVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("verify", verifyHelp, std)
	measurements := fs.String("measurement", "", "launch measurements that are accepted, 96 hex digits each, with commas")
	manifestFile := fs.String("manifest", "", "the manifest that was sent")
	resultFile := fs.String("result", "", "the result as delivered (result.tar.age)")
	root := fs.String("test-root", "", "PEM file with the root of a simulated TEE (test-root.pem)")
	asJSON := fs.Bool("json", false, "print the facts as JSON")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	var want verify.Expect
	for m := range strings.SplitSeq(*measurements, ",") {
		if m == "" {
			continue
		}
		p, err := evidence.ParseMeasurement(m)
		if err != nil {
			return usagef("--%v; want 96 hex digits", err)
		}
		want.Measurements = append(want.Measurements, p)
	}
	var err error
	if want.Roots, err = testRoots(std, *root); err != nil {
		return err
	}
	if *manifestFile != "" {
		b, err := std.readFile(*manifestFile, 1<<20)
		if err != nil {
			return err
		}
		want.Manifest = b
	}
	if *resultFile != "" {
		sum, err := hashFile(*resultFile)
		if err != nil {
			return err
		}
		want.ResultSHA256 = sum
	}
	b, err := std.readFile(fs.Arg(0), result.MaxReceipt)
	if err != nil {
		return err
	}
	v, err := verify.Receipt(b, want)
	if v != nil {
		if *asJSON {
			err = errors.Join(err, std.json(v))
		} else {
			fmt.Fprint(std.out, v.Text())
		}
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown && *root == "" {
		err = fmt.Errorf("%w; a receipt of a simulated TEE needs --test-root", err)
	}
	if err != nil {
		return &exitError{3, err}
	}
	return nil
}

// testRoots reads the root of a simulated processor; without a file it is nil, which means AMD's.
func testRoots(std stdio, file string) ([]verify.Root, error) {
	if file == "" {
		return nil, nil
	}
	b, err := std.readFile(file, 1<<20)
	if err != nil {
		return nil, err
	}
	r, err := verify.LoadRoot(b)
	if err != nil {
		return nil, fmt.Errorf("--test-root %s: %w", file, err)
	}
	return []verify.Root{r}, nil
}

func hashFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}

const openHelp = `
usage: ampoule open --identity FILE --out DIR RESULT

Decrypts a sealed result with an age identity (age-keygen, or an ssh key) and unpacks it to DIR, which must not
exist: results/ is the workload's, log/ its output and the private log, timeline.ndjson the boot. A result that
came in clear (result.tar) needs no identity.

Examples:
  ampoule open --identity key.txt --out opened result.tar.age
  ampoule open --out opened result.tar`

// maxResult bounds what open unpacks, bytes.
const maxResult = 64 << 30

func openVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("open", openHelp, std)
	identity := fs.String("identity", "", "file with age identities, or an ssh private key")
	out := fs.String("out", "", "folder to make")
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	if err := required(fs, "out"); err != nil {
		return err
	}
	return openResult(std, fs.Arg(0), *identity, *out)
}

// openResult reads the identity from its file; "" expects a result in clear.
func openResult(std stdio, path, identity, out string) error {
	if identity == "" {
		return unsealTo(path, nil, out)
	}
	b, err := std.readFile(identity, 1<<20)
	if err != nil {
		return err
	}
	defer clear(b)
	ids, err := result.ParseIdentities(b)
	if err != nil {
		return fmt.Errorf("--identity %s: %w", identity, err)
	}
	return unsealTo(path, ids, out)
}

// ageHeader begins every sealed result.
const ageHeader = "age-encryption.org/"

// unsealTo decrypts the result at path with the given identities and unpacks it to out. Whether it is sealed must be as
// the caller expects; without identities that is in clear.
func unsealTo(path string, ids []age.Identity, out string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := bufio.NewReader(f)
	head, _ := b.Peek(len(ageHeader)) // what cannot be read is in clear, and ExtractTar says why not
	var r io.Reader = b
	switch sealed := string(head) == ageHeader; {
	case sealed && ids == nil:
		return fmt.Errorf("%s is sealed: give the recipient's key with --identity FILE", path)
	case !sealed && ids != nil:
		return fmt.Errorf("%s is not sealed, so whoever ran the VM can read it: open it without --identity if that is expected", path)
	case sealed:
		if r, err = result.Unseal(b, ids); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(out, 0o700); errors.Is(err, os.ErrExist) {
		return fmt.Errorf("--out %s: is there already; name a new folder", out)
	} else if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	if err := result.ExtractTar(r, out, maxResult); err != nil {
		os.Remove(out) // stays when something could be unpacked
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
