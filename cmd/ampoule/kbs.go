package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"

	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/rego"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/store"
	"github.com/ampoule-vm/ampoule/internal/verify"
)

const kbsHelp = `
usage: ampoule kbs --dir DIR [flags]
       ampoule kbs spki|keygen|token|put|delete|policy|reference [flags]

Serves the resources in DIR to VMs whose evidence holds and whom the policy allows. DIR/keys/REPO/TYPE/TAG are the
bytes of one resource each. DIR/policy.json says who gets which:

  {"default/key/algo-key": {"measurements": ["<96 hex>"], "init_data": ["<64 hex: ampoule manifest digest>"]}}

A policy in Rego, as Trustee has them, can be uploaded, or put at DIR/policies/resource.rego. Where there are both,
both must allow; where there is none, everything is denied.

Evidence must be AMD's or Intel's; with --test-root it must be that of the simulated processor with this root, and all
other is refused. --allow-sample takes sample evidence, which anybody can make up. Each decision is a line on standard
error, with what was expected and what came; --audit has the same as JSON, one object a line.

With no certificate given, one is made in DIR/tls at the first start, for a manifest to pin: spki.
--identity or --passphrase seal what is uploaded, so that the disk alone gives away no key. With --admin-key the verbs
put, delete, policy and reference reach this broker; they reach Trustee, too. ampoule kbs VERB -h explains each.

For development, tests and one machine. Trustee is the broker for more than that.

Examples:
  ampoule kbs --dir broker --test-root out/job/test-root.pem
  ampoule kbs keygen --out admin
  ampoule kbs --dir broker --admin-key admin.pub --passphrase pass.txt --audit audit.ndjson`

// kbsVerbs administer a broker, here or elsewhere.
var kbsVerbs = []verb{
	{"spki", "", kbsSPKI},
	{"keygen", "", kbsKeygen},
	{"token", "", kbsToken},
	{"put", "", kbsPut},
	{"delete", "", kbsDelete},
	{"policy", "", kbsPolicy},
	{"reference", "", kbsReference},
}

// A broker is what the flags of ampoule kbs say.
type broker struct {
	dir, listen, root, adminKey, adminRole, identity, passphrase, audit string
	certs, collateral, tcbStatus                                        string
	cert, key                                                           string
	http                                                                bool
	conf                                                                kbsserver.Config
}

func kbsVerb(ctx context.Context, args []string, std stdio) error {
	for _, v := range kbsVerbs {
		if len(args) > 0 && args[0] == v.name {
			return v.run(ctx, args[1:], std)
		}
	}
	var b broker
	f := flags("kbs", kbsHelp, std)
	f.StringVar(&b.dir, "dir", "", "folder with keys/, sealed/, policies and tls/")
	f.StringVar(&b.listen, "listen", "127.0.0.1:8080", "address to serve on")
	f.StringVar(&b.root, "test-root", "", "PEM file with the root of a simulated processor")
	f.StringVar(&b.certs, "certs", "", "folder with VCEK and VLEK certificates, for hosts that give their guests none")
	f.StringVar(&b.collateral, "collateral", "", "folder with Intel's answers about platforms, as ampoule verify takes it; read again for each guest")
	f.StringVar(&b.tcbStatus, "tcb-status", "", "statuses of TDX platforms taken besides UpToDate, as OutOfDate, with commas")
	f.BoolVar(&b.conf.AllowSample, "allow-sample", false, "accept sample evidence, which proves nothing")
	f.StringVar(&b.conf.Protocol, "protocol", "0.4.0", "the one version to speak: 0.4.0, 0.2.0, 0.1.1 or 0.1.0")
	f.BoolVar(&b.conf.OldAzureNames, "old-azure-names", false, "names of Azure's TEEs as Trustee had them up to v0.15")
	f.BoolVar(&b.http, "http", false, "plain http, for networks that never leave this machine")
	f.StringVar(&b.cert, "tls-cert", "", "PEM file with the certificate and its chain")
	f.StringVar(&b.key, "tls-key", "", "PEM file with the certificate's key")
	f.StringVar(&b.adminKey, "admin-key", "", "PEM file with the Ed25519 public key of the administrator")
	f.StringVar(&b.adminRole, "admin-role", "admin", "role that an administrator's token must have")
	f.StringVar(&b.identity, "identity", "", "age identity file: seal what is uploaded")
	f.StringVar(&b.passphrase, "passphrase", "", "file with a passphrase: seal what is uploaded")
	f.StringVar(&b.audit, "audit", "", "file to append decisions to, one JSON object a line")
	if err := parse(f, args, 0); err != nil {
		return err
	}
	if err := required(f, "dir"); err != nil {
		return err
	}
	switch {
	case (b.cert == "") != (b.key == ""):
		return usagef("--tls-cert and --tls-key go together")
	case b.http && b.cert != "":
		return usagef("--http and --tls-cert exclude each other")
	case b.tcbStatus != "" && b.collateral == "":
		return usagef("--tcb-status goes with --collateral")
	case b.identity != "" && b.passphrase != "":
		return usagef("--identity and --passphrase exclude each other")
	}
	return b.serve(ctx, std)
}

func (b *broker) serve(ctx context.Context, std stdio) (err error) {
	b.conf.Dir, b.conf.Log = b.dir, slog.New(slog.NewTextHandler(std.err, nil))
	if b.conf.Roots, b.conf.Intel, err = testRoots(std, b.root); err != nil {
		return err
	}
	if err := b.judges(); err != nil {
		return err
	}
	s, err := b.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ask, load := resourcePolicy(s)
	if err := load(); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(b.dir, "policy.json")); errors.Is(err, fs.ErrNotExist) {
			std.say("kbs: there is neither %s nor a policy in Rego: every resource is denied", filepath.Join(b.dir, "policy.json"))
		}
	} else if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(b.dir, "policies/resource.rego"), err)
	}
	appraise, load := attestationPolicy(s)
	if err := load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Join(b.dir, "policies/attestation", store.DefaultPolicy+".rego"), err)
	}
	b.conf.Resources, b.conf.ResourcePolicy, b.conf.Appraise = s, ask, appraise
	if b.conf.Admin, err = b.admin(std, s); err != nil {
		return err
	}
	if b.audit != "" {
		f, err := os.OpenFile(b.audit, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("--audit: %w", err)
		}
		defer f.Close()
		b.conf.Audit = f
	}
	server, err := kbsserver.New(b.conf)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", b.listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", b.listen, err)
	}
	scheme := "http"
	if !b.http {
		scheme = "https"
		conf, err := b.tls(std)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		l = tls.NewListener(l, conf)
	}
	std.say("kbs: serving %s on %s://%s", b.dir, scheme, l.Addr())
	return server.Serve(ctx, l)
}

// judges fills in what evidence is judged with besides roots. Collateral that cannot be read now is an error now.
func (b *broker) judges() (err error) {
	if b.certs != "" {
		if b.conf.VCEKs, err = verify.LoadCerts(b.certs); err != nil {
			return fmt.Errorf("--certs: %w", err)
		}
	}
	if b.collateral == "" {
		return nil
	}
	b.conf.Collateral = func() (*verify.Collateral, error) { return verify.LoadCollateral(b.collateral) }
	if b.tcbStatus != "" {
		b.conf.TCBStatus = strings.Split(b.tcbStatus, ",")
	}
	if _, err = b.conf.Collateral(); err != nil {
		return fmt.Errorf("--collateral: %w", err)
	}
	return nil
}

// open gives the store, with the identity that seals it.
func (b *broker) open() (*store.Store, error) {
	var id age.Identity
	var err error
	switch {
	case b.identity != "":
		if id, err = store.Identity(b.identity); err != nil {
			return nil, fmt.Errorf("--identity: %w", err)
		}
	case b.passphrase != "":
		if id, err = store.Passphrase(b.dir, b.passphrase); err != nil {
			return nil, fmt.Errorf("--passphrase: %w", err)
		}
	}
	return store.Open(b.dir, store.Options{Identity: id})
}

func (b *broker) admin(std stdio, s *store.Store) (*store.Admin, error) {
	o := store.AdminOptions{
		Roles: []string{b.adminRole}, Log: b.conf.Log,
		CheckPolicy:      func(src []byte) error { _, err := rego.Compile(src); return err },
		CheckAttestation: func(src []byte) error { _, err := rego.CompileAttestation(src); return err },
	}
	if b.adminKey != "" {
		text, err := std.readFile(b.adminKey, 64<<10)
		if err == nil {
			o.Key, err = store.ParsePublicKey(text)
		}
		if err != nil {
			return nil, fmt.Errorf("--admin-key %s: %w", b.adminKey, err)
		}
	}
	return store.NewAdmin(s, o), nil
}
