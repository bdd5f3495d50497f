package image

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const (
	maxToken      = 16 << 10 // bytes
	maxTokenReply = 64 << 10 // bytes
)

// credential is the value of an Authorization header. It may be secret.
type credential struct {
	header string
	secret bool // from a login, and not for everyone
}

func (credential) String() string   { return "[secret]" }
func (credential) GoString() string { return "[secret]" }

func basic(l *Login) credential {
	return credential{"Basic " + base64.StdEncoding.EncodeToString([]byte(l.User+":"+l.Password)), true}
}

// authenticate finds out what the place p wants to see after it refused a request with the credential refused
// (https://distribution.github.io/distribution/spec/auth/token, RFC 7617). Its reply has come from p itself, without a redirect.
func (r *registry) authenticate(ctx context.Context, p *place, refused credential, resp *http.Response) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.auth != refused {
		return nil // another request was faster
	}
	all, err := parseChallenges(resp.Header.Values("WWW-Authenticate"))
	if err != nil {
		return fmt.Errorf("%s: WWW-Authenticate: %w", p.host, err)
	}
	// Whoever answers over http can name any token service, https or not: a login is not for him.
	plain := p.login != nil && resp.Request.URL.Scheme != "https"
	for _, c := range all {
		if c.scheme == "bearer" {
			if plain {
				return plainLogin(p.host)
			}
			p.auth, err = r.token(ctx, p, resp.Request.URL, c)
			return err
		}
	}
	for _, c := range all {
		switch {
		case c.scheme != "basic":
		case p.login == nil:
			return fmt.Errorf("%s wants a password, and none is given for it", p.host)
		case plain:
			return plainLogin(p.host)
		case refused == basic(p.login):
			return fmt.Errorf("%s refuses the password of user %.80q", p.host, p.login.User)
		default:
			p.auth = basic(p.login)
			return nil
		}
	}
	return fmt.Errorf("%s: status 401, and it asks neither for a token nor for a password", p.host)
}

// token asks the service that the registry names. Tokens are renewed when they are refused, and not when they should have
// expired: the clock is the host's.
func (r *registry) token(ctx context.Context, p *place, from *url.URL, c challenge) (credential, error) {
	u, err := url.Parse(c.params["realm"])
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.Fragment != "" || special(from, u) {
		return credential{}, fmt.Errorf("%s: token service %.200q is refused", p.host, c.params["realm"])
	}
	q := u.Query()
	if s, ok := c.params["service"]; ok {
		q.Set("service", s)
	}
	scope := "repository:" + p.repo + ":pull" // what is needed, whatever the challenge says
	if p.push {
		scope += ",push"
	}
	q.Set("scope", scope)
	u.RawQuery = q.Encode()

	f := &flight{place: p, max: maxTokenReply}
	if p.login != nil {
		f.auth = basic(p.login)
	}
	resp, err := r.do(ctx, http.MethodGet, u, http.Header{}, f)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = refusal(resp)
	}
	if err != nil {
		return credential{}, fmt.Errorf("token service %s: %w", u.Host, err)
	}
	defer resp.Body.Close()
	b, err := readAll(resp.Body, maxTokenReply)
	if err != nil {
		return credential{}, fmt.Errorf("token service %s: %w", u.Host, err)
	}
	t, err := parseToken(b)
	if err != nil {
		return credential{}, fmt.Errorf("token service %s: %w", u.Host, err)
	}
	return credential{"Bearer " + t, p.login != nil}, nil
}

// parseToken reads a token service's reply. Its errors do not quote it.
func parseToken(b []byte) (string, error) {
	var doc struct {
		Token  string `json:"token"`
		Access string `json:"access_token"` // OAuth 2's name for the same
	}
	if err := one(b, &doc); err != nil {
		return "", fmt.Errorf("%w: the reply is not JSON with a token", ErrFormat)
	}
	t := cmp.Or(doc.Token, doc.Access)
	if t == "" || len(t) > maxToken || strings.ContainsFunc(t, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return "", fmt.Errorf("%w: the reply has no token, or one that fits into no header", ErrFormat)
	}
	return t, nil
}

// A challenge is one way that a server offers to authenticate. Names are in lower case.
type challenge struct {
	scheme string
	params map[string]string // nil where there is something else in their place
}

var errChallenge = errors.New("cannot be read")

// parseChallenges reads WWW-Authenticate (RFC 9110 §11.6.1), of which there may be several lines, each with several
// challenges. What cannot be read whole is not read at all.
func parseChallenges(lines []string) ([]challenge, error) {
	var all []challenge
	if len(lines) > 8 {
		return nil, fmt.Errorf("%d lines: %w", len(lines), errChallenge)
	}
	for _, s := range lines {
		if len(s) > 4096 {
			return nil, fmt.Errorf("%d bytes: %w", len(s), errChallenge)
		}
		first := len(all)
		for s = strings.TrimLeft(s, " \t,"); s != ""; s = strings.TrimLeft(s, " \t,") {
			word, rest := cutToken(s)
			if word == "" {
				return nil, errChallenge
			}
			word = strings.ToLower(word)
			after := strings.TrimLeft(rest, " \t")
			if value, ok := strings.CutPrefix(after, "="); ok {
				if len(all) == first || all[len(all)-1].params == nil {
					return nil, errChallenge // of no scheme, or one that has no parameters
				}
				params := all[len(all)-1].params
				_, twice := params[word]
				if params[word], s, ok = cutValue(strings.TrimLeft(value, " \t")); !ok || twice {
					return nil, errChallenge
				}
			} else {
				all = append(all, challenge{word, map[string]string{}})
				s = after
				if rest != "" && rest[0] != ' ' && rest[0] != ',' {
					return nil, errChallenge
				}
				if left, ok := cutToken68(after); ok {
					s, all[len(all)-1].params = left, nil
				}
				continue
			}
			if s = strings.TrimLeft(s, " \t"); s != "" && s[0] != ',' {
				return nil, errChallenge
			}
		}
	}
	return all, nil
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func cutToken(s string) (token, rest string) {
	n := 0
	for n < len(s) && (isAlnum(s[n]) || strings.IndexByte("!#$%&'*+-.^_`|~", s[n]) >= 0) {
		n++
	}
	return s[:n], s[n:]
}

// cutToken68 takes off what some schemes have in place of parameters, if that is what is there.
func cutToken68(s string) (rest string, ok bool) {
	n := 0
	for n < len(s) && (isAlnum(s[n]) || strings.IndexByte("-._~+/", s[n]) >= 0) {
		n++
	}
	rest = strings.TrimLeft(strings.TrimLeft(s[n:], "="), " \t")
	return rest, n > 0 && (rest == "" || rest[0] == ',')
}

// cutValue takes off a token or a quoted string.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for n := 1; n < len(s); n++ {
		switch c := s[n]; {
		case c == '"':
			return b.String(), s[n+1:], true
		case c < ' ' || c >= 0x7f:
			return "", "", false
		case c == '\\' && n+1 < len(s):
			n++
			if s[n] < ' ' || s[n] >= 0x7f {
				return "", "", false
			}
			b.WriteByte(s[n])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}
