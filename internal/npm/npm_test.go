package npm_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/npm"
)

func tgz(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for name, data := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func integrity(b []byte) string {
	h := sha512.Sum512(b)
	return "sha512-" + base64.StdEncoding.EncodeToString(h[:])
}

func TestFetchVerifiesAndCaches(t *testing.T) {
	file := tgz(t, map[string]string{"package/bin/tool": "binary", "package/README": "x"})
	var hits atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if r.URL.Path != "/base/@scope/tool/-/tool-1.2.3.tgz" {
			http.NotFound(w, r)
			return
		}
		if _, err := w.Write(file); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	c := &npm.Client{Registry: srv.URL + "/base/", Cache: filepath.Join(t.TempDir(), "c")}
	p := npm.Package{Name: "@scope/tool", Version: "1.2.3", Integrity: "sha1-abc " + integrity(file)}
	var last int64
	got, err := c.Fetch(t.Context(), p, func(done, _ int64) { last = done })
	if err != nil {
		t.Fatal(err)
	}
	if last != int64(len(file)) {
		t.Errorf("progress ended at %d of %d", last, len(file))
	}
	if _, err := c.Fetch(t.Context(), p, nil); err != nil || hits.Load() != 1 {
		t.Errorf("cached: %v, %d requests", err, hits.Load())
	}
	if err := os.WriteFile(got, []byte("rotten"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fetch(t.Context(), p, nil); err != nil || hits.Load() != 2 {
		t.Errorf("rotten cache: %v, %d requests", err, hits.Load())
	}
	r, size, err := npm.Open(got, "package/bin/tool")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil || string(b) != "binary" || size != 6 {
		t.Errorf("%q, %d, %v", b, size, err)
	}
	if _, _, err := npm.Open(got, "package/none"); err == nil {
		t.Error("found a file that is not there")
	}
}

func TestFetchFailuresLeaveNothing(t *testing.T) {
	file := tgz(t, map[string]string{"package/x": "y"})
	wrong := integrity([]byte("other"))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx       context.Context
		handler   http.HandlerFunc
		integrity string
		code      string
	}{
		"other content": {t.Context(), func(w http.ResponseWriter, _ *http.Request) { w.Write(file) }, wrong, "npm_integrity"},
		"not there":     {t.Context(), http.NotFound, integrity(file), "npm_fetch"},
		"cut short": {t.Context(), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			w.Write(file)
		}, integrity(file), "npm_fetch"},
		"no hash":   {t.Context(), http.NotFound, "sha1-abc", "npm_integrity"},
		"cancelled": {cancelled, http.NotFound, integrity(file), "npm_fetch"},
		"away": {t.Context(), func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://user:secret@127.0.0.1:1/", http.StatusFound)
		}, integrity(file), "npm_fetch"},
	} {
		srv := httptest.NewServer(c.handler)
		dir := t.TempDir()
		_, err := (&npm.Client{Registry: srv.URL, Cache: dir}).Fetch(c.ctx, npm.Package{Name: "x", Version: "1", Integrity: c.integrity}, nil)
		srv.Close()
		if errs.CodeOf(err) != c.code {
			t.Errorf("%s: %v (%s)", name, err, errs.CodeOf(err))
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the message holds a secret: %v", name, err)
		}
		if es, _ := os.ReadDir(dir); len(es) != 0 {
			t.Errorf("%s left %v", name, es)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	user, system := filepath.Join(dir, "user"), filepath.Join(dir, "system")
	for p, s := range map[string]string{
		user:   "; comment\n#registry=http://no\n@jdxcode:registry = \"http://scoped/\"\n",
		system: "registry=http://${HOSTNAME_OF_IT}/npm\nfund=false\n",
	} {
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"HOSTNAME_OF_IT": "mirror"}
	f := npm.Finder{Getenv: func(k string) string { return env[k] }, Files: []string{user, system}}
	check := func(scope, want string) {
		t.Helper()
		if got, err := f.Find(t.Context(), scope); err != nil || got != want {
			t.Errorf("scope %q: %q, %v; want %q", scope, got, err, want)
		}
	}
	check("@jdxcode", "http://scoped/")
	check("", "http://mirror/npm")
	env["npm_config_registry"] = "http://env/"
	check("", "http://env/")
	env[npm.EnvRegistry] = "http://own/"
	check("@jdxcode", "http://own/")
	none := npm.Finder{Getenv: func(string) string { return "" }, Ask: func(context.Context) (string, error) { return "", errors.New("no npm") }}
	if _, err := none.Find(t.Context(), ""); errs.CodeOf(err) != "npm_registry_unknown" || errs.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	none.Ask = func(context.Context) (string, error) { return "http://asked/", nil }
	if got, err := none.Find(t.Context(), ""); err != nil || got != "http://asked/" {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(tgz(f, map[string]string{"package/x": "y"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, size, err := npm.Open(p, "package/x")
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		if err == nil && n > size {
			t.Fatalf("%d bytes of %d", n, size)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
