// Package npm fetches one file of one pinned package from the npm registry
// that this machine's user has configured. It resolves no dependencies, runs no
// scripts and knows no registry of its own.
package npm

import (
	"archive/tar"
	"context"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/fsx"
)

// Limits of what is believed of a registry.
const (
	maxPackage  = 512 << 20
	maxMember   = 2 << 30
	maxEntries  = 10_000
	idleTimeout = 30 * time.Second // without a byte
)

// Package is one version of a package and the hash its file must have.
type Package struct {
	Name      string // "@scope/name" or "name"
	Version   string
	Integrity string // "sha512-…" as lock files have it
}

// Client fetches packages.
type Client struct {
	Registry string // base URL, from Registry
	Cache    string // directory for verified packages
	HTTP     *http.Client
}

// Fetch gives the path of the package's file, from the cache or from the
// registry. What it gives has the package's hash; what has another is deleted.
// progress may be nil; total is 0 where unknown. Codes: npm_fetch (retryable),
// npm_integrity, disk_full.
func (c *Client) Fetch(ctx context.Context, p Package, progress func(done, total int64)) (string, error) {
	want, err := parseIntegrity(p.Integrity)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(c.Cache, 0o700); err != nil {
		return "", err
	}
	dst := filepath.Join(c.Cache, hex.EncodeToString(want[:16])+".tgz")
	if f, err := os.Open(dst); err == nil {
		got, herr := hashOf(ctx, f)
		if err := errors.Join(herr, f.Close()); err != nil {
			return "", err
		}
		if subtle.ConstantTimeCompare(got, want) == 1 {
			return dst, nil
		}
	}
	if err := c.download(ctx, p, want, dst, progress); err != nil {
		return "", err
	}
	return dst, nil
}

// address is where a registry keeps a package's file.
func address(registry string, p Package) (string, error) {
	u, err := url.Parse(registry)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return "", errs.New(errs.Invalid, "npm_registry", "npm registry %q is not an http or https URL", redact(registry))
	}
	base := p.Name[strings.LastIndexByte(p.Name, '/')+1:]
	return u.JoinPath(p.Name, "-", base+"-"+p.Version+".tgz").String(), nil
}

func (c *Client) download(ctx context.Context, p Package, want []byte, dst string, progress func(done, total int64)) error {
	addr, err := address(c.Registry, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(idleTimeout, func() { cancel(fmt.Errorf("no data for %s", idleTimeout)) })
	defer idle.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr, nil)
	if err != nil {
		return fetchError(p, err)
	}
	client := c.HTTP
	if client == nil {
		client = &http.Client{CheckRedirect: noDowngrade}
	}
	res, err := client.Do(req)
	if err != nil {
		return fetchError(p, cause(ctx, err))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fetchError(p, fmt.Errorf("registry answered %s", res.Status))
	}
	f, err := fsx.CreateTemp(dst, 0o600)
	if err != nil {
		return err
	}
	h := sha512.New()
	body := &counter{r: io.LimitReader(res.Body, maxPackage+1), seen: func(n int64) {
		idle.Reset(idleTimeout)
		if progress != nil {
			progress(n, max(res.ContentLength, 0))
		}
	}}
	n, err := io.Copy(io.MultiWriter(f, h), body)
	switch {
	case fsx.IsFull(err):
		err = errs.Wrap(err, errs.Exhausted, "disk_full", "no space left for package %s", p.Name)
	case err != nil:
		err = fetchError(p, cause(ctx, err))
	case n > maxPackage:
		err = fetchError(p, fmt.Errorf("more than %d bytes", maxPackage))
	case subtle.ConstantTimeCompare(h.Sum(nil), want) != 1:
		err = errs.New(errs.Unavailable, "npm_integrity", "package %s %s is not what it should be: its hash differs from the pinned one", p.Name, p.Version)
	}
	if err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit()
}

// Open gives one file of a fetched package and its size.
func Open(file, member string) (io.ReadCloser, int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	zr, err := gzip.NewReader(f)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("read package: %w", err), f.Close())
	}
	tr := tar.NewReader(zr)
	for range maxEntries {
		h, err := tr.Next()
		if err != nil {
			return nil, 0, errors.Join(fmt.Errorf("find %s in package: %w", member, err), f.Close())
		}
		if path.Clean(h.Name) == member && h.Typeflag == tar.TypeReg && h.Size <= maxMember {
			return struct {
				io.Reader
				io.Closer
			}{tr, f}, h.Size, nil
		}
	}
	return nil, 0, errors.Join(fmt.Errorf("find %s in package: too many files", member), f.Close())
}

// parseIntegrity reads the SRI form; only SHA-512 counts.
func parseIntegrity(s string) ([]byte, error) {
	for part := range strings.FieldsSeq(s) {
		b64, ok := strings.CutPrefix(part, "sha512-")
		if !ok {
			continue
		}
		b64, _, _ = strings.Cut(b64, "?")
		if sum, err := base64.StdEncoding.DecodeString(b64); err == nil && len(sum) == sha512.Size {
			return sum, nil
		}
	}
	return nil, errs.New(errs.Invalid, "npm_integrity", "integrity %q holds no sha512", s)
}

func hashOf(ctx context.Context, r io.Reader) ([]byte, error) {
	h := sha512.New()
	_, err := io.Copy(h, &counter{r: r, seen: func(int64) {}, ctx: ctx})
	return h.Sum(nil), err
}

// noDowngrade follows redirects, but not from https to something weaker.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("too many redirects")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errors.New("redirected from https to " + req.URL.Scheme)
	}
	return nil
}

// fetchError names the package, not the address, which may carry a secret.
func fetchError(p Package, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return errs.Wrap(err, errs.Unavailable, "npm_fetch", "fetch package %s %s", p.Name, p.Version)
}

func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// counter tells how much was read, and ends with ctx where it has one.
type counter struct {
	r    io.Reader
	n    int64
	seen func(total int64)
	ctx  context.Context
}

func (c *counter) Read(p []byte) (int, error) {
	if c.ctx != nil && c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.seen(c.n)
	return n, err
}
