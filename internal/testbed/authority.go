package testbed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/pkg/errors"
)

// Authority issues certificates for daemons on 127.0.0.1 and for their clients.
type Authority struct {
	Cert string // file

	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Identity is a certificate and its key.
type Identity struct {
	Cert, Key string // files
}

// NewAuthority makes an authority that keeps its files in dir.
func NewAuthority(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	a := &Authority{dir: dir, key: key, cert: template("authority")}
	a.cert.IsCA, a.cert.KeyUsage = true, x509.KeyUsageCertSign
	if a.Cert, err = a.write("ca", key); err != nil {
		return nil, err
	}
	return a, nil
}

func template(name string) *x509.Certificate {
	now := time.Now()
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) //nolint:errcheck // rand.Reader does not fail
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// write signs the certificate of the authority itself.
func (a *Authority) write(name string, key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		return "", errors.WithStack(err)
	}
	return writePEM(filepath.Join(a.dir, name+".pem"), "CERTIFICATE", der)
}

// Issue issues a certificate for use by servers and clients.
func (a *Authority) Issue(name string) (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	cert := template(name)
	cert.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	id := &Identity{}
	if id.Cert, err = writePEM(filepath.Join(a.dir, name+".pem"), "CERTIFICATE", der); err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.WithStack(err)
	}
	id.Key, err = writePEM(filepath.Join(a.dir, name+"-key.pem"), "PRIVATE KEY", keyDER)
	return id, err
}

func writePEM(path, typ string, der []byte) (string, error) {
	return path, errors.WithStack(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600))
}
