/* The extended Kalman filter of benchmarks/nonlinear.py, written out for 4 states and 2 channels:
   log likelihood, filtered means fm (T x 4) and covariances fP (T x 4 x 4) unless those are null. */
#include <math.h>
#include <string.h>

#define DT 0.02
#define DRAG 0.05
#define PULL 0.3

double ekf(long T, const double *y, const double *q, const double *r, const double *m0, const double *P0,
           double *fm, double *fP) {
    double m[4], P[16], ll = 0;
    memcpy(m, m0, sizeof m);
    memcpy(P, P0, sizeof P);
    for (long t = 0; t < T; t++) {
        double square = m[0] * m[0] + m[1] * m[1], range = sqrt(square);
        double H[2][2] = {{m[0] / range, m[1] / range}, {-m[1] / square, m[0] / square}};
        double v0 = y[2 * t] - range, v1 = y[2 * t + 1] - atan2(m[1], m[0]);
        double W[4][2], K[4][2];
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < 2; k++) W[i][k] = P[i * 4] * H[k][0] + P[i * 4 + 1] * H[k][1];
        double a = H[0][0] * W[0][0] + H[0][1] * W[1][0] + r[0];
        double b = H[0][0] * W[0][1] + H[0][1] * W[1][1];
        double c = H[1][0] * W[0][1] + H[1][1] * W[1][1] + r[1];
        double det = a * c - b * b, inverse = 1 / det;
        ll -= 0.5 * ((c * v0 * v0 - 2 * b * v0 * v1 + a * v1 * v1) * inverse + log(det))
              + 1.8378770664093453;
        for (int i = 0; i < 4; i++) {
            K[i][0] = (c * W[i][0] - b * W[i][1]) * inverse;
            K[i][1] = (a * W[i][1] - b * W[i][0]) * inverse;
            m[i] += K[i][0] * v0 + K[i][1] * v1;
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) P[i * 4 + j] -= K[i][0] * W[j][0] + K[i][1] * W[j][1];
        if (fm) memcpy(fm + t * 4, m, sizeof m);
        if (fP) memcpy(fP + t * 16, P, sizeof P);
        double v = sqrt(m[2] * m[2] + m[3] * m[3] + 1e-6), d = DT * DRAG;
        double F[16] = {1, 0, DT, 0,
                        0, 1, 0, DT,
                        -DT * PULL * cos(m[0]), 0, 1 - d * (v + m[2] * m[2] / v), -d * m[2] * m[3] / v,
                        0, -DT * PULL * cos(m[1]), -d * m[2] * m[3] / v, 1 - d * (v + m[3] * m[3] / v)};
        double next[4] = {m[0] + DT * m[2], m[1] + DT * m[3],
                          m[2] - DT * (DRAG * v * m[2] + PULL * sin(m[0])),
                          m[3] - DT * (DRAG * v * m[3] + PULL * sin(m[1]))};
        double A[16], B[16];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                double z = 0;
                for (int k = 0; k < 4; k++) z += F[i * 4 + k] * P[k * 4 + j];
                A[i * 4 + j] = z;
            }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) {
                double z = i == j ? q[i] : 0;
                for (int k = 0; k < 4; k++) z += A[i * 4 + k] * F[j * 4 + k];
                B[i * 4 + j] = z;
            }
        memcpy(P, B, sizeof P);
        memcpy(m, next, sizeof m);
    }
    return ll;
}
