package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ampoule-vm/ampoule/internal/evidence"
	"github.com/ampoule-vm/ampoule/internal/kbs/kbsserver/store"
)

// administrator is a client of the endpoints that a broker keeps for its owner: this one's, or Trustee's.
type administrator struct {
	url, ca, key, token, role string
	http                      bool
	posts                     bool // the verb is about something else, and says --kbs
}

// postFlags are those of a verb that makes keys and may give them to a broker.
func (a *administrator) postFlags(fs *flag.FlagSet) {
	a.posts, a.role = true, "admin"
	fs.StringVar(&a.url, "kbs", "", "broker that the keys are posted to, https://HOST[:PORT]; empty: none")
	fs.StringVar(&a.ca, "ca", "", "PEM file that the broker's certificate must chain to; empty: this machine's roots")
	fs.StringVar(&a.key, "admin-key", "", "the broker's administrator's private key")
	fs.StringVar(&a.token, "admin-token-file", "", "file with an administrator's token, - for standard input, instead of --admin-key")
}

// post gives the broker a resource, in place of what it has there.
func (a *administrator) post(ctx context.Context, std stdio, path string, b []byte) error {
	_, err := a.do(ctx, std, http.MethodPost, "resource/"+path, "application/octet-stream", b)
	return err
}

func (a *administrator) flags(fs *flag.FlagSet) {
	fs.StringVar(&a.url, "url", "https://127.0.0.1:8080", "the broker")
	fs.StringVar(&a.ca, "ca", "", "PEM file that the broker's certificate must chain to; empty: this machine's roots")
	fs.StringVar(&a.key, "key", "", "administrator's private key: a token of five minutes is made of it")
	fs.StringVar(&a.token, "token", "", "file with a token, - for standard input, instead of --key")
	fs.StringVar(&a.role, "role", "admin", "role in the token that --key makes")
	fs.BoolVar(&a.http, "http", false, "send the token over plain http to another machine, too")
}

const maxAnswer = 8 << 20

// do sends one request below /kbs/v0/, and gives what came back with a 200.
func (a *administrator) do(ctx context.Context, std stdio, method, path, contentType string, body []byte) ([]byte, error) {
	base, err := a.base()
	if err != nil {
		return nil, err
	}
	token, err := a.bearer(std)
	if err != nil {
		return nil, err
	}
	client, err := a.client(std)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, base+"/kbs/v0/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("%s: an answer of more than %d bytes", base, maxAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusedAs(base, resp.Status, answer)
	}
	return answer, nil
}

// refusedAs says what a broker's error says.
func refusedAs(base, status string, answer []byte) error {
	var e struct{ Type, Detail string }
	if json.Unmarshal(answer, &e) != nil || e.Type == "" {
		return fmt.Errorf("%s: %s: %.200q", base, status, answer)
	}
	variant := e.Type[strings.LastIndexByte(e.Type, '/')+1:]
	return fmt.Errorf("%s: %.80s: %.600s", base, variant, e.Detail)
}

func (a *administrator) base() (string, error) {
	name, hint := "--url", "use https, or say --http"
	if a.posts {
		name, hint = "--kbs", "use https"
	}
	u, err := url.Parse(a.url)
	if err != nil {
		return "", usagef("%s: %v", name, err)
	}
	if u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
		return "", usagef("%s %q: want https://host[:port]", name, a.url)
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && !a.http && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", usagef("%s %s: whoever listens could take the token, and what is sent; %s", name, a.url, hint)
	}
	return strings.TrimRight(u.String(), "/"), nil
}

// bearer gives the token to send; none for a broker that lets everybody administer it.
func (a *administrator) bearer(std stdio) (string, error) {
	switch {
	case a.key != "" && a.token != "":
		return "", usagef("an administrator's key and a token exclude each other")
	case a.token != "":
		b, err := std.readFile(a.token, 64<<10)
		if err != nil {
			return "", fmt.Errorf("--token: %w", err)
		}
		return strings.TrimSpace(string(b)), nil
	case a.key != "":
		return newToken(std, a.key, a.role, 5*time.Minute)
	}
	return "", nil
}

func newToken(std stdio, file, role string, lifetime time.Duration) (string, error) {
	b, err := std.readFile(file, 64<<10)
	if err != nil {
		return "", fmt.Errorf("--key: %w", err)
	}
	defer clear(b)
	key, err := store.ParsePrivateKey(b)
	if err != nil {
		return "", fmt.Errorf("--key %s: %w", file, err)
	}
	defer clear(key)
	return store.Token(key, role, time.Now(), lifetime)
}

func (a *administrator) client(std stdio) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.ca != "" {
		b, err := std.readFile(a.ca, 1<<20)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("--ca %s: no PEM certificate in it", a.ca)
		}
	}
	return &http.Client{
		Timeout:       time.Minute,
		Transport:     &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

const kbsPutHelp = `
usage: ampoule kbs put --key FILE [flags] REPO/TYPE/TAG FILE

Uploads the bytes of FILE, at most 64 KiB, as a resource; - is standard input. One that is there is replaced.

Examples:
  ampoule kbs put --ca broker/tls/cert.pem --key admin default/key/algo-key algo.key
  ampoule kbs put --url https://kbs.example --key admin --role kbs-admin default/app/token -`

func kbsPut(ctx context.Context, args []string, std stdio) error {
	var a administrator
	fs := flags("kbs put", kbsPutHelp, std)
	a.flags(fs)
	if err := parse(fs, args, 2); err != nil {
		return err
	}
	if err := store.CheckPath(fs.Arg(0)); err != nil {
		return usagef("%v", err)
	}
	b, err := std.readFile(fs.Arg(1), store.MaxResource)
	defer clear(b)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return fmt.Errorf("%s: empty", fs.Arg(1))
	}
	return a.post(ctx, std, fs.Arg(0), b)
}

const kbsDeleteHelp = `
usage: ampoule kbs delete --key FILE [flags] REPO/TYPE/TAG

Removes a resource.

Example:
  ampoule kbs delete --ca broker/tls/cert.pem --key admin default/key/algo-key`

func kbsDelete(ctx context.Context, args []string, std stdio) error {
	var a administrator
	fs := flags("kbs delete", kbsDeleteHelp, std)
	a.flags(fs)
	if err := parse(fs, args, 1); err != nil {
		return err
	}
	if err := store.CheckPath(fs.Arg(0)); err != nil {
		return usagef("%v", err)
	}
	_, err := a.do(ctx, std, http.MethodDelete, "resource/"+fs.Arg(0), "", nil)
	return err
}

const kbsPolicyHelp = `
usage: ampoule kbs policy --key FILE [flags] FILE
       ampoule kbs policy --key FILE [flags] --list

Uploads a policy in Rego; - is standard input. It is the resource policy: package policy, with a rule allow over
data["resource-path"] and the claims of the guest's token, which are input. --attestation ID uploads a policy of the
attestation service instead, which says what a guest is worth (ear.status); ampoule kbs asks default_cpu alone.

Examples:
  ampoule kbs policy --ca broker/tls/cert.pem --key admin resource.rego
  ampoule kbs policy --url https://kbs.example --key admin --attestation default_cpu cpu.rego`

func kbsPolicy(ctx context.Context, args []string, std stdio) error {
	var a administrator
	fs := flags("kbs policy", kbsPolicyHelp, std)
	a.flags(fs)
	attestation := fs.String("attestation", "", "upload the attestation service's policy of this name")
	list := fs.Bool("list", false, "print the names of the policies for resources")
	if err := parseOr(fs, args, 1, "list"); err != nil {
		return err
	}
	if *list {
		b, err := a.do(ctx, std, http.MethodGet, "resource-policy", "", nil)
		if err != nil {
			return err
		}
		return std.line(b)
	}
	src, err := std.readFile(fs.Arg(0), store.MaxPolicy)
	if err != nil {
		return err
	}
	body, path := map[string]string{"policy": base64.RawURLEncoding.EncodeToString(src)}, "resource-policy"
	if *attestation != "" {
		body["type"], body["policy_id"], path = "rego", *attestation, "attestation-policy"
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	_, err = a.do(ctx, std, http.MethodPost, path, "application/json", b)
	return err
}

const kbsReferenceHelp = `
usage: ampoule kbs reference --key FILE [flags] FILE
       ampoule kbs reference --key FILE [flags] --get NAME

Uploads reference values: FILE is a JSON object of names and values; - is standard input. --get prints one, null if
there is none. Attestation policies ask for them (query_reference_value), as that of Trustee does.

Example:
  ampoule kbs reference --url https://kbs.example --key admin values.json`

func kbsReference(ctx context.Context, args []string, std stdio) error {
	var a administrator
	fs := flags("kbs reference", kbsReferenceHelp, std)
	a.flags(fs)
	get := fs.String("get", "", "print the value of this name")
	if err := parseOr(fs, args, 1, "get"); err != nil {
		return err
	}
	if *get != "" {
		b, err := a.do(ctx, std, http.MethodGet, "reference-value/"+url.PathEscape(*get), "", nil)
		if err != nil {
			return err
		}
		return std.line(b)
	}
	values, err := std.readFile(fs.Arg(0), store.MaxReferenceValues)
	if err != nil {
		return err
	}
	if _, err := evidence.Object(values); err != nil {
		return fmt.Errorf("%s: %w", fs.Arg(0), err)
	}
	b, err := json.Marshal(map[string]string{"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(values)})
	if err != nil {
		return err
	}
	_, err = a.do(ctx, std, http.MethodPost, "reference-value", "application/json", b)
	return err
}

// line prints an answer with one newline at its end.
func (s stdio) line(b []byte) error {
	_, err := fmt.Fprintf(s.out, "%s\n", bytes.TrimRight(b, "\r\n"))
	return err
}

// parseOr is parse for a verb that takes no words if this flag is given.
func parseOr(fs *flag.FlagSet, args []string, words int, name string) error {
	err := parse(fs, args, words)
	if f := fs.Lookup(name); f.Value.String() != f.DefValue {
		return parse(fs, args, 0)
	}
	return err
}
