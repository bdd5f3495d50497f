package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver"
	"github.com/ampoule-vm/ampoule/internal/keypolicy"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/measure"
	"github.com/ampoule-vm/ampoule/qemu"
)

const policyHelp = `
usage: ampoule policy --measurements FILE --manifest FILE|DIGEST --resource PATH --out DIR [flags]

Makes what a key broker needs to release resources to one image that runs one of these manifests, and to nobody else:

  reference-values.json  what the image measures to, by name
  rvps.json              the same as the message that Trustee takes
  attestation.rego       attestation policy, which compares evidence with them
  resource.rego          resource policy: image, manifest and path, each by itself
  broker-KIND.json       the plain policy of ampoule kbs, of one kind of evidence: its policy.json

and prints the commands that upload them. FILE is measurements.json of ampoule measure or ampoule build. A manifest is
its file, or its initdata digest (ampoule manifest digest). A resource is REPO/TYPE/TAG, of which each can be *. Shapes
whose evidence does not tell which image runs get nothing, and are named with the reason.

On Azure the paravisor is launched, and starts the image. Its launch measurement is not public: --paravisor says which
one is trusted, as that of a VM whose evidence was looked at (ampoule verify).

Examples:
  ampoule policy --measurements measurements.json --manifest job.json --resource 'default/key/*' --out policy
  ampoule policy --measurements measurements.json --manifest 7f…21 --resource 'default/key/*' --min-tcb snp=22,microcode=213 --out policy`

func policyVerb(_ context.Context, args []string, std stdio) error {
	fs := flags("policy", policyHelp, std)
	measurements := fs.String("measurements", "", "measurements.json of the image")
	manifests := fs.String("manifest", "", "manifests that may run: files or digests, with commas")
	resources := fs.String("resource", "", "what is released, with commas")
	paravisors := fs.String("paravisor", "", "launch measurements of Azure's paravisor that are trusted, 96 hex digits each, with commas")
	tcb := fs.String("min-tcb", "", "lowest patch levels of SNP: bootloader=N,tee=N,snp=N,microcode=N")
	out := fs.String("out", "", "folder to write")
	url := fs.String("url", "https://127.0.0.1:8080", "the broker, in the commands")
	ca := fs.String("ca", "kbs.pem", "file with the broker's certificate, in the commands")
	asJSON := fs.Bool("json", false, "print what was written, and which shapes get nothing, as JSON")
	if err := parse(fs, args, 0); err != nil {
		return err
	}
	if err := required(fs, "measurements", "manifest", "resource", "out"); err != nil {
		return err
	}
	b, err := std.readFile(*measurements, maxMeasurements)
	if err != nil {
		return err
	}
	m, err := measure.ParseMeasurements(b)
	if err != nil {
		return fmt.Errorf("--measurements %s: %w", *measurements, err)
	}
	o := keypolicy.Options{Resources: strings.Split(*resources, ",")}
	for arg := range strings.SplitSeq(*manifests, ",") {
		digest, err := manifestDigest(std, arg)
		if err != nil {
			return err
		}
		o.Manifests = append(o.Manifests, digest)
	}
	for text := range strings.SplitSeq(*paravisors, ",") {
		if text == "" {
			continue
		}
		v, err := evidence.ParseMeasurement(text)
		if err != nil {
			return usagef("--paravisor: %v; want 96 hex digits", err)
		}
		o.Paravisor = append(o.Paravisor, v)
	}
	if o.MinTCB, err = leastTCB(*tcb); err != nil {
		return err
	}
	p, err := keypolicy.Make(m, o)
	if err != nil {
		return fmt.Errorf("--measurements %s: %w", *measurements, err)
	}
	files, err := writePolicy(*out, p)
	if err != nil {
		return err
	}
	if *asJSON {
		return std.json(map[string]any{"files": files, "left": p.Left})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Left)) {
		std.say("nothing is released to %s: %s", name, p.Left[name])
	}
	fmt.Fprint(std.out, uploads(*url, *ca, *out, p))
	return nil
}

const maxMeasurements = 4 << 20

// manifestDigest is the initdata digest of a manifest, which is named by it or by its file.
func manifestDigest(std stdio, arg string) ([32]byte, error) {
	var d kbsserver.Digest
	if err := d.UnmarshalText([]byte(arg)); err == nil {
		return d, nil
	}
	raw, err := std.readFile(arg, manifest.MaxSize)
	if err != nil {
		return d, usagef("--manifest %.140q: neither a digest of 64 hex digits nor a file: %v", arg, err)
	}
	if _, err := manifest.Parse(raw, func(string) bool { return true }); err != nil {
		return d, fmt.Errorf("--manifest %s: %w", arg, err)
	}
	return manifest.InitdataDigest(manifest.Wrap(raw)), nil
}

func leastTCB(text string) (least kbsserver.MinTCB, err error) {
	fields := map[string]*uint8{"bootloader": &least.Bootloader, "tee": &least.TEE, "snp": &least.SNP, "microcode": &least.Microcode}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		n, err := strconv.ParseUint(value, 10, 8)
		if err != nil || fields[name] == nil {
			return least, usagef("--min-tcb %.40q: want one of %s, = and a number to 255", part, strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
		}
		*fields[name] = uint8(n)
	}
	return least, nil
}

// writePolicy writes the files, and returns their names.
func writePolicy(dir string, p *keypolicy.Policy) ([]string, error) {
	files, err := p.Files()
	if err := errors.Join(err, os.MkdirAll(dir, 0o755)); err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		if err := (stdio{}).write(filepath.Join(dir, name), files[name]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// uploads are the commands for either client. kbs-client sets reference values one at a time, each as a list of its own, so that
// lists of several go as one message.
func uploads(url, ca, dir string, p *keypolicy.Policy) string {
	var b strings.Builder
	line := func(words ...string) { fmt.Fprintln(&b, qemu.ShellCommand(words[0], words[1:])) }
	file := func(name string) string { return filepath.Join(dir, name) }
	fmt.Fprintln(&b, "# with ampoule:")
	own := func(verb string, words ...string) {
		line(append([]string{"ampoule", "kbs", verb, "--url", url, "--ca", ca, "--key", "admin"}, words...)...)
	}
	own("reference", file(keypolicy.ReferenceValuesFile))
	own("policy", "--attestation", "default_cpu", file(keypolicy.AttestationFile))
	own("policy", file(keypolicy.ResourceFile))
	fmt.Fprintln(&b, "# with kbs-client of Trustee:")
	fmt.Fprintln(&b, "ampoule kbs token --key admin --lifetime 10m > token")
	config := func(words ...string) {
		line(append([]string{"kbs-client", "--url", url, "--cert-file", ca, "config", "--admin-token-file", "token"}, words...)...)
	}
	if commands, ok := single(p.References); ok {
		for _, c := range commands {
			config(append([]string{"set-sample-reference-value"}, c...)...)
		}
	} else {
		fmt.Fprintln(&b, `(umask 077; echo "Authorization: Bearer $(cat token)" > header)`)
		line("curl", "--fail", "--cacert", ca, "-H", "@header", "-H", "Content-Type: application/json", "--data-binary", "@"+file(keypolicy.RVPSFile), url+"/kbs/v0/reference-value")
	}
	config("set-attestation-policy", "--type", "rego", "--id", "default_cpu", "--policy-file", file(keypolicy.AttestationFile))
	config("set-resource-policy", "--policy-file", file(keypolicy.ResourceFile))
	return b.String()
}

// single are the words that set each value by itself; ok is false where a list has several.
func single(references map[string]any) (words [][]string, ok bool) {
	for _, name := range slices.Sorted(maps.Keys(references)) {
		switch v := references[name].(type) {
		case []string:
			if len(v) != 1 {
				return nil, false
			}
			words = append(words, []string{name, v[0]})
		default:
			words = append(words, []string{name, fmt.Sprint(v), "--as-integer", "--as-single-value"})
		}
	}
	return words, true
}
