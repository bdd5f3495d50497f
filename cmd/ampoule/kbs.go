package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
)

const kbsHelp = `
usage: ampoule kbs --dir DIR [--listen ADDR:PORT] [--test-root FILE]

Serves the keys in DIR/keys/REPO/TYPE/TAG to VMs whose evidence holds and whom DIR/policy.json allows:

  {"default/key/algo-key": {"measurements": ["<96 hex>"], "init_data": ["<64 hex: ampoule manifest digest>"]}}

Evidence must be AMD's or Intel's; with --test-root it must be that of the simulated processor with this root, and all
other is refused. --allow-sample takes sample evidence for the attestation, which no rule of the policy releases a key to. Each decision is a line on
standard error, with what was expected and what came. For development, tests and one machine: plain http, no
administration over the network. Trustee is the broker for more than that.

Example:
  ampoule kbs --dir broker --test-root out/job/test-root.pem`

func kbsVerb(ctx context.Context, args []string, std stdio) error {
	fs := flags("kbs", kbsHelp, std)
	dir := fs.String("dir", "", "folder with keys/ and policy.json")
	listen := fs.String("listen", "127.0.0.1:8080", "address to serve on")
	root := fs.String("test-root", "", "PEM file with the root of a simulated processor")
	sample := fs.Bool("allow-sample", false, "accept sample evidence, which proves nothing")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if err := required(fs, "dir"); err != nil {
		return err
	}
	c := kbsserver.Config{Dir: *dir, AllowSample: *sample, Log: slog.New(slog.NewTextHandler(std.err, nil))}
	var err error
	if c.Roots, c.Intel, err = testRoots(std, *root); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(*dir, "keys"), 0o700); err != nil {
		return err
	}
	s, err := kbsserver.New(c)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("--listen %s: %w", *listen, err)
	}
	std.say("kbs: serving %s on http://%s", *dir, l.Addr())
	return s.Serve(ctx, l)
}
