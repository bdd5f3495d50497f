package manifest

import (
	"fmt"
	"strings"
	"testing"
)

const pinnedURI = "docker://r.example/aa@sha256:1111111111111111111111111111111111111111111111111111111111111111"

// own is a manifest in Ampoule's spelling with more members.
func own(more string) string {
	return `{"version":1,"algorithm":{"uri":"` + pinnedURI + `"}` + more + `}`
}

func algorithm(members string) string { return `{"computation_id":"c","algorithm":{` + members + `}}` }

func ofURI(uri string) string { return algorithm(`"uri":"` + uri + `"`) }

func ofBroker(url string) string {
	return algorithm(`"uri":"` + pinnedURI + `","encrypted":true,"kbs":{"url":"` + url + `"}`)
}

func computation(algorithm, more string) string {
	return `{"id":"1","algorithm":{"source":{"url":"` + pinnedURI + `"}` + algorithm + `}` + more + `}`
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ raw, want string }{
		"nothing":                              {"", "manifest: is not JSON at line 1, column 1"},
		"a list":                               {"[]", "manifest: is a list, want an object"},
		"no spelling":                          {`{}`, "manifest: is in no known spelling"},
		"a second document":                    {own("") + "{}", "is not JSON at line 1"},
		"a comment":                            {"{\n  // no\n}", "is not JSON at line 2, column 3"},
		"a byte order mark":                    {"\ufeff" + own(""), "is not JSON"},
		"a NUL at the end":                     {own("") + "\x00", "is not JSON"},
		"over 1 MiB":                           {own("") + strings.Repeat(" ", MaxSize), "manifest: is 1048"},
		"bytes that are not UTF-8":             {own(`,"args":["` + "\xff" + `"]`), "is not UTF-8 at line 1, column"},
		"half a surrogate pair":                {own(`,"args":["\\\ud800"]`), `args[0]: has half a surrogate pair, \ud800`},
		"the other half":                       {own(`,"args":["\udc00\ud800"]`), `args[0]: has half a surrogate pair, \udc00`},
		"half a pair in a key":                 {own(`,"env":{"\ud800":""}`), "has half a surrogate pair"},
		"nesting without end":                  {own(`,"env":` + strings.Repeat("[", 40) + strings.Repeat("]", 40)), "manifest: is nested deeper than 32"},
		"a hundred thousand values":            {own(`,"args":[0` + strings.Repeat(",0", 100000) + `]`), "has more than 65536 values"},
		"a key twice":                          {own(`,"logs":"host","logs":"sealed"`), "logs: is there twice"},
		"a key twice, once escaped":            {own(`,"logs":"host","l\u006fgs":"sealed"`), "logs: is there twice"},
		"a key twice deep down":                {own(`,"results":{"limit_bytes":1,"limit_bytes":2}`), "results.limit_bytes: is there twice"},
		"a variable twice":                     {own(`,"env":{"A B":"1","A B":"2"}`), `env["A B"]: is there twice`},
		"a key in another case":                {own(`,"Logs":"host"`), `Logs: is "logs" in another case`},
		"a key in another case deep down":      {algorithm(`"URI":"` + pinnedURI + `"`), `algorithm.URI: is "uri" in another case`},
		"an unknown key":                       {own(`,"priority":1`), "priority: is an unknown key"},
		"args in Cocos' spelling":              {`{"computation_id":"c","args":[],"algorithm":{"uri":"` + pinnedURI + `"}}`, "args: is an unknown key"},
		"the ids of two spellings":             {`{"id":"1","computation_id":"c","algorithm":{"uri":"` + pinnedURI + `"}}`, "id: is an unknown key"},
		"an empty id":                          {`{"computation_id":"","algorithm":{"uri":"` + pinnedURI + `"}}`, "computation_id: is empty"},
		"an id of the wrong type":              {`{"computation_id":7,"algorithm":{"uri":"` + pinnedURI + `"}}`, "computation_id: is a number, want a string"},
		"another version":                      {`{"version":2,"algorithm":{"uri":"` + pinnedURI + `"}}`, "version: is 2, want 1"},
		"a version in words":                   {`{"version":"1","algorithm":{"uri":"` + pinnedURI + `"}}`, "version: is a string, want a number"},
		"null":                                 {own(`,"logs":null`), "logs: is null, want a string"},
		"a number with a fraction":             {own(`,"resources":{"pids":1.5}`), "resources.pids: is 1.5, want an integer"},
		"a number with an exponent":            {own(`,"resources":{"pids":1e2}`), "resources.pids: is 1e2, want an integer"},
		"a number beyond int64":                {own(`,"resources":{"memory_bytes":99999999999999999999}`), "resources.memory_bytes: is 99999999999999999999, want an integer"},
		"no processes":                         {own(`,"resources":{"pids":0}`), "resources.pids: is 0, want an integer from 1"},
		"a grace that is none":                 {own(`,"resources":{"grace":"0s"}`), `resources.grace: "0s": want 1s to 10m`},
		"a grace of hours":                     {own(`,"resources":{"grace":"2h"}`), `resources.grace: "2h": want 1s to 10m`},
		"no CPU":                               {own(`,"resources":{"cpus":0}`), "resources.cpus: is 0, want"},
		"half a CPU":                           {own(`,"resources":{"cpus":0.5}`), "resources.cpus: is 0.5, want an integer"},
		"scratch larger than memory":           {own(`,"resources":{"memory_bytes":16777216,"disk_bytes":33554432}`), "resources.disk_bytes: is 33554432, and memory_bytes, in which it lies, 16777216: want less, or more memory"},
		"a deadline without unit":              {own(`,"resources":{"deadline":"10"}`), `resources.deadline: "10": want 1s to 720h`},
		"no algorithm":                         {`{"version":1}`, "algorithm: is missing"},
		"an algorithm of nothing":              {algorithm(""), "algorithm.uri: is missing: this build takes no uploads"},
		"a source beside a uri":                {algorithm(`"uri":"` + pinnedURI + `","source":{"url":"` + pinnedURI + `"}`), "algorithm.uri: stands beside source"},
		"no tag, no digest":                    {ofURI("docker://r.example/aa"), "run `ampoule manifest pin`"},
		"no scheme":                            {ofURI("r.example/a:v1"), "want docker://host/repository@sha256"},
		"no registry":                          {ofURI("docker://python:3.12"), "names no registry"},
		"no registry, a path":                  {ofURI("docker://library/python:3.12"), "names no registry"},
		"a digest of another kind":             {ofURI("docker://r.example/aa@sha512:00"), "want sha256: and 64 lower-case hex digits"},
		"a digest in capitals":                 {ofURI(strings.Replace(pinnedURI, "11", "AA", 1)), "want sha256: and 64 lower-case hex digits"},
		"a tag that is none":                   {ofURI("docker://r.example/aa:-v"), `"-v" is not a tag`},
		"a repository of one letter":           {ofURI("docker://r.example/a:v1"), "a repository of 1 characters"},
		"a repository that goes up":            {ofURI("docker://r.example/a/../b:v1"), `".." in the repository`},
		"a repository in capitals":             {ofURI("docker://r.example/Algo:v1"), `"Algo" in the repository`},
		"a port that is none":                  {ofURI("docker://r.example:99999/aa:v1"), "port \"99999\""},
		"a user in the reference":              {ofURI("docker://u:p@r.example/aa:v1"), "want sha256"},
		"an S3 object":                         {ofURI("s3://bucket/algo.enc"), "is not encrypted and has no digest"},
		"a type of no name":                    {algorithm(`"type":"tarball","uri":"` + pinnedURI + `"`), `algorithm.type: "tarball": want oci-image, s3`},
		"encrypted without a broker":           {algorithm(`"uri":"` + pinnedURI + `","encrypted":true`), "algorithm.kbs: is missing: the resource is encrypted"},
		"encrypted with a broker switched off": {algorithm(`"uri":"` + pinnedURI + `","encrypted":true,"kbs":{"url":"https://k.example","enabled":false}`), "algorithm.kbs: is not enabled"},
		"a key for an image in clear":          {algorithm(`"uri":"` + pinnedURI + `","kbs_resource_path":"a/b/c"`), "algorithm.encrypted: is not true"},
		"a key path of two parts":              {algorithm(`"uri":"` + pinnedURI + `","encrypted":true,"kbs_resource_path":"a/b"`), "want repository/type/tag"},
		"a key path that goes up":              {algorithm(`"uri":"` + pinnedURI + `","encrypted":true,"kbs_resource_path":"a/../c"`), "want repository/type/tag"},
		"encrypted without a key path":         {`{"version":1,"kbs_url":"https://k.example","algorithm":{"uri":"` + pinnedURI + `","encrypted":true}}`, "algorithm.kbs_resource_path: is missing"},
		"two brokers for all":                  {own(`,"kbs_url":"https://a.example","kbs":{"url":"https://b.example"}`), "kbs: is https://b.example and kbs_url is https://a.example"},
		"a broker list beside kbs_url":         {own(`,"kbs_url":"https://a.example","kbs":[{"url":"https://b.example"}]`), "kbs_url: stands beside kbs"},
		"a broker twice":                       {own(`,"kbs":[{"url":"https://b.example/"},{"url":"https://B.example:443"}]`), "kbs[1].url: https://b.example: is listed twice"},
		"a broker without a URL":               {own(`,"kbs":[{}]`), "kbs[0].url: is missing"},
		"a pin on plain http":                  {own(`,"kbs":[{"url":"http://b.example","spki":"` + strings.Repeat("00", 32) + `"}]`), "plain http has no certificate to pin"},
		"a broker's password":                  {ofBroker("https://u:p@k.example"), "algorithm.kbs.url: has a user or password"},
		"a broker's query":                     {ofBroker("https://k.example/?a=b"), "has a query or a fragment"},
		"a broker's empty fragment":            {ofBroker("https://k.example/#"), "has a query or a fragment"},
		"a broker of another scheme":           {ofBroker("ftp://k.example"), "want https://host"},
		"a broker without a host":              {ofBroker("https:///x"), "want a name or an address"},
		"a broker's path that goes up":         {ofBroker("https://k.example/a/%2e%2e/b"), `".." in the path`},
		"a certificate that is none":           {own(`,"kbs":[{"url":"https://b.example","ca":"hello"}]`), "kbs[0].ca: is not PEM of certificates alone"},
		"a secret key as certificate":          {own(`,"registries":[{"host":"r.example","ca":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}]`), "registries[0].ca: is not PEM of certificates alone"},
		"a registry of which nothing is said":  {own(`,"registries":[{"host":"r.example"}]`), "registries[0].ca: is missing"},
		"credentials without a broker":         {own(`,"registries":[{"host":"r.example","credentials":"a/b/c"}]`), "registries[0].credentials: names no key broker, and the manifest has 0 for all"},
		"two datasets of one name":             {own(`,"datasets":[{"uri":"` + pinnedURI + `","filename":"x"},{"uri":"` + pinnedURI + `","filename":"x"}]`), `datasets[1].filename: "x": is datasets[0].filename as well`},
		"a dataset's name with a slash":        {own(`,"datasets":[{"uri":"` + pinnedURI + `","filename":"../x"}]`), "datasets[0].filename:"},
		"a dataset to decompress":              {own(`,"datasets":[{"uri":"` + pinnedURI + `","decompress":true}]`), "datasets[0].decompress: is of a file, zip or tar; an image is unpacked anyway"},
		"a short hash":                         {own(`,"datasets":[{"uri":"` + pinnedURI + `","sha256":"00"}]`), "datasets[0].sha256: \"00\": want 64 lower-case hex digits"},
		"a hash of the algorithm":              {`{"version":1,"algorithm":{"uri":"` + pinnedURI + `","sha256":"00"}}`, "algorithm.sha256: is of one file, and here an image's own entrypoint is run"},
		"a workload of another kind":           {own(`,"workload":"java"`), `workload: "java" is unknown; want one of oci, bin, python, wasm`},
		"a network":                            {own(`,"network":["example.org:443"]`), `network: is a list; want "none", or {"egress"`},
		"a network by name":                    {own(`,"network":"host"`), `network: "host": want none, or {"egress"`},
		"a runtime image":                      {own(`,"runtime":{"uri":"` + pinnedURI + `"}`), "runtime: is of the kind python, and the kind is oci"},
		"a relative directory":                 {own(`,"cwd":"cocos"`), "cwd: \"cocos\": want an absolute path"},
		"a user that is none":                  {own(`,"user":"a b"`), `user: "a b": want user or user:group`},
		"a variable without a name":            {own(`,"env":{"":"x"}`), `env[""]: is not a name of a variable`},
		"a variable with = in its name":        {own(`,"env":{"A=B":"x"}`), `env["A=B"]: is not a name of a variable`},
		"a variable with NUL":                  {own(`,"env":{"A":"\u0000"}`), "env.A: has a NUL"},
		"an argument with NUL":                 {own(`,"args":["\u0000"]`), "args[0]: has a NUL"},
		"an argument that is a number":         {own(`,"args":[1]`), "args[0]: is a number, want a string"},
		"results elsewhere":                    {own(`,"results":{"path":"/out"}`), "results.path: \"/out\": not supported in this build"},
		"no sink":                              {own(`,"results":{"sinks":[]}`), "results.sinks: is empty"},
		"another sink":                         {own(`,"results":{"sinks":["vsock","ftp://x?sig=1"]}`), "results.sinks[1]: \"ftp://x\": want vsock, https://… (pre-signed) or docker://host/repository"},
		"a registry by digest":                 {own(`,"results":{"sinks":["` + pinnedURI + `"]}`), "results.sinks[0]: \"docker://"},
		"a registry without a repository":      {own(`,"results":{"sinks":["docker://r.example"]}`), "results.sinks[0]: "},
		"a sink that is a number":              {own(`,"results":{"sinks":[1]}`), "results.sinks[0]: is a number, want a string or an object"},
		"a sink of nothing":                    {own(`,"results":{"sinks":[{"deadline":"1m"}]}`), `results.sinks[0]: has both of "to" and "upload", or neither`},
		"a sink of two places":                 {own(`,"results":{"sinks":[{"to":"vsock","upload":{"url":"https://x"}}]}`), `results.sinks[0]: has both of "to" and "upload", or neither`},
		"a sink with too much time":            {own(`,"results":{"sinks":[{"to":"vsock","deadline":"21m"}]}`), `results.sinks[0].deadline: "21m": want 1s to 20m, as`},
		"a sink with an unknown key":           {own(`,"results":{"sinks":[{"to":"vsock","tries":1}]}`), "results.sinks[0].tries: is an unknown key"},
		"an upload at no broker":               {own(`,"results":{"sinks":[{"upload":"a/b/c"}]}`), "results.sinks[0].upload: names no key broker"},
		"an upload twice":                      {own(`,"results":{"sinks":["https://x/y?s=1","https://x/y?s=1"]}`), "results.sinks[1]: upload: is there twice"},
		"nine sinks":                           {own(`,"results":{"sinks":[1,2,3,4,5,6,7,8,9]}`), "results.sinks: 9 of them, at most 8"},
		"a sink twice":                         {own(`,"results":{"sinks":["vsock","vsock"]}`), "results.sinks[1]: vsock: is there twice"},
		"a recipient twice":                    {own(`,"results":{"recipients":["age1a","age1a"]}`), "results.recipients[1]: is there twice"},
		"post-quantum recipients and others":   {own(`,"results":{"recipients":["age1a","age1pq1a"]}`), "results.recipients: mixes post-quantum"},
		"logs elsewhere":                       {own(`,"logs":"syslog"`), "logs: want sealed or host"},
		"a control character":                  {own(`,"logs":"\n"`), "logs: has a control character, U+000A"},
		"an upload":                            {`{"id":"1","algorithm":{"hash":[],"algo_type":"docker"}}`, "algorithm.source: is missing: this build takes no uploads"},
		"a hash of 31 numbers":                 {computation(`,"hash":[`+strings.Repeat("1,", 30)+`1]`, ""), "algorithm.hash: has 31 numbers, want 32"},
		"a hash of 256s":                       {computation(`,"hash":[`+strings.Repeat("256,", 31)+`1]`, ""), "algorithm.hash[0]: is 256, want an integer from 0 to 255"},
		"a hash in hex":                        {computation(`,"hash":"00"`, ""), "algorithm.hash: is a string, want a list"},
		"a hash of an algorithm's file":        {computation(`,"algo_type":"docker","hash":[`+strings.Repeat("1,", 31)+`1]`, ""), "algorithm.hash: is of one file"},
		"an algorithm in Java":                 {computation(`,"algo_type":"java"`, ""), `algorithm.algo_type: "java" is unknown`},
		"a user key that is not base64":        {computation(`,"user_key":"!"`, ""), "algorithm.user_key: is not base64"},
		"an agent's configuration":             {computation("", `,"agent_config":{}`), "agent_config: is an unknown key"},
		"Cocos' kbs, silently off":             {`{"id":"1","algorithm":{"source":{"url":"` + pinnedURI + `","encrypted":true},"kbs":{"url":"https://k.example"}}}`, "algorithm.kbs: is not enabled"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Parse([]byte(c.raw), nil)
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want == "":
			case err == nil:
				t.Fatalf("taken as %+v", m)
			case !strings.Contains(err.Error(), c.want):
				t.Fatalf("%v\nwant it to say %q", err, c.want)
			}
		})
	}
}

func TestParseQuotesNoSecretKey(t *testing.T) {
	_, err := Parse([]byte(own(`,"results":{"recipients":["AGE-SECRET-KEY-1QQQ"]}`)), nil)
	if err == nil || strings.Contains(err.Error(), "QQQ") {
		t.Errorf("%v: want an error without the key", err)
	}
}

func TestParseReportsAllProblems(t *testing.T) {
	_, err := Parse([]byte(`{"version":1,"algorithm":{"uri":"x","encrypted":true},"datasets":[7,{"uri":"docker://r.example/aa"}],"logs":1,"nope":{},"kbs_url":"http://k.example"}`), nil)
	p, ok := err.(Problems)
	if !ok {
		t.Fatal(err)
	}
	for _, path := range []string{"algorithm.uri", "algorithm.kbs_resource_path", "algorithm.kbs", "datasets[0]", "datasets[1].uri", "logs", "nope"} {
		found := 0
		for _, one := range p {
			if one.Path == path {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%s: %d problems, want 1, in\n%v", path, found, err)
		}
	}
	var keys strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&keys, `,"k%d":1`, i)
	}
	if _, err := Parse([]byte(own(keys.String())), nil); len(err.(Problems)) != maxProblems+1 {
		t.Errorf("%d problems, want %d and a line that says so", len(err.(Problems)), maxProblems)
	}
}
